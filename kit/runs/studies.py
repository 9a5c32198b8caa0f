"""A row a study: the series that stands for it, its six probabilities, the slice to look at."""

from __future__ import annotations

import pandas as pd

from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.slices.series import choose_series

_KEY_SLICE = ("SOPInstanceUID", "InstanceNumber", "position")
_IDENTITY = [
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesDescription", "series_count",
    "reason", "warnings", "slices",
]  # fmt: skip


def summarize_studies(
    table: pd.DataFrame, described: pd.DataFrame, pooled: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Summarize each study in one row by the series that `choose_series` takes for it.

    `table` is that of `prediction.Predictions`, `described` its `described`, `pooled` its `series`.
    A row has the identity of study and series, `series_count` (how many the study has), `reason`
    (why this one), its `warnings` and `slices`; for each label `{label}`, the probability of the
    series (the model's own or else the maximum over slices), and its key slice, where a slice's
    probability is highest: `{label}_SOPInstanceUID`, `{label}_InstanceNumber` and
    `{label}_position` (mm); and `classifier_{label}_maximum`, by the classifiers alone. All of
    these are missing where no slice of the series could be read.
    """
    chosen = choose_series(described).set_index("series")
    slices = table[table["series"].isin(chosen.index)].groupby("series", sort=False)
    values = slices[list(LABELS)].max() if pooled is None else pooled[list(LABELS)]
    parts = [chosen[_IDENTITY].assign(slices=slices.size()), values]
    for label in LABELS:
        rows = table.loc[slices[label].idxmax(), ["series", *_KEY_SLICE]].set_index("series")
        parts.append(rows.add_prefix(f"{label}_"))
    parts.append(slices[name_columns("classifier")].max().add_suffix("_maximum"))
    joined = pd.concat([parts[0], *(part.reindex(chosen.index) for part in parts[1:])], axis=1)
    return joined.assign(slices=joined["slices"].fillna(0).astype(int)).reset_index(drop=True)
