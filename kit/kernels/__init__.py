"""What the cells of the Kaggle notebooks call."""

_CELLS = (
    "prepare_prediction", "predict", "tabulate_labels", "show_slices", "train_classifier",
    "train_lstm",
)  # fmt: skip


def __getattr__(name: str):
    """The cells' functions; imported when first used, for a stage's processes need none of them."""
    if name not in _CELLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kit.kernels import cells

    return getattr(cells, name)
