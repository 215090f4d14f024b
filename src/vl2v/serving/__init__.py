"""Serving: an exported student behind HTTP, with a page."""
