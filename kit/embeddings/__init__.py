"""Embeddings of all slices: the store that holds them, and their extraction."""

from kit.embeddings.extraction import Embedder, extract_embeddings
from kit.embeddings.store import EmbeddingStore, create_array, make_series, seal_store

__all__ = [
    "Embedder",
    "EmbeddingStore",
    "create_array",
    "extract_embeddings",
    "make_series",
    "seal_store",
]
