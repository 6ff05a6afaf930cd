"""Embeddings on disk: writing them, opening them, searching them."""
