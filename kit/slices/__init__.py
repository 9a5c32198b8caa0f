"""A folder, a zip or the competition → the slice table, in order, and what was skipped."""

from kit.slices.index import index_files, index_slices, list_files, order_slices

__all__ = ["index_files", "index_slices", "list_files", "order_slices"]
