"""Teachers behind a vendor's API, and servers that speak as OpenAI's and Infinity's do."""
