"""Series of embeddings: differences, the Dataset, batches; and the second sequence model."""

from kit.sequences.series import (
    SeriesDataset,
    add_deltas,
    batch_by_length,
    collate_series,
    read_rows,
)

__all__ = ["SeriesDataset", "add_deltas", "batch_by_length", "collate_series", "read_rows"]
