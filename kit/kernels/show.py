"""What the last cells of a notebook show of the submission that it left."""

from __future__ import annotations

import pandas as pd

from kit.competition import LABELS, read_submission
from kit.kernels.cells import Prediction


def tabulate_labels(prediction: Prediction) -> pd.DataFrame:
    """A check without a score: the mean probability of each label against the training prior."""
    wide = read_submission(prediction.submission)
    table = pd.DataFrame(
        {
            "mean": wide.mean(),
            "training prior": prediction.prior,
            "ratio": wide.mean() / prediction.prior,
            "lowest": wide.min(),
            "highest": wide.max(),
        }
    )
    return table.round(4)


def show_slices(prediction: Prediction):
    """Draw the most probable slice of each label. Not a medical device."""
    from matplotlib import pyplot

    from kit.images import read_image
    from kit.windowing import InputConfig

    table = prediction.submission.with_suffix(".parquet")
    if not table.exists():
        print("There are no predictions to show.")
        return
    slices = pd.read_parquet(table).dropna(subset=list(LABELS))
    brain = InputConfig(image_size=512, crop=False)
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 8), layout="constrained")
    for axis, label in zip(axes.flat, LABELS, strict=True):
        row = slices.loc[slices[label].idxmax()]
        axis.imshow(read_image(row["path"], brain)[..., 0], cmap="gray")
        axis.set_title(f"{label} {row[label]:.3f}\n{row['SOPInstanceUID']}", fontsize=9)
        axis.axis("off")
    figure.suptitle("Most probable slice of each label, brain window. Not a medical device.")
