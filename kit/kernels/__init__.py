"""What the cells of the Kaggle notebooks call."""

from kit.kernels.cells import (
    predict,
    prepare_prediction,
    tonight,
    train_classifier,
    train_lstm,
)
from kit.kernels.show import show_slices, tabulate_labels

__all__ = [
    "predict",
    "prepare_prediction",
    "show_slices",
    "tabulate_labels",
    "tonight",
    "train_classifier",
    "train_lstm",
]
