"""Teacher embeddings: the store, the plan of what is left to query, the fetch loop."""
