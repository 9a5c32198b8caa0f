"""Thin series → slabs: neighbouring slices averaged to the thickness that models are trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.progress import format_count, log
from kit.slices.series import LEAST_SPACING, USUAL_SPACING


def average_thin(
    slices: pd.DataFrame, described: pd.DataFrame, slab: float | None = None
) -> pd.DataFrame:
    """Take slabs of `slab` mm in the place of the slices of thin series.

    By default these are the series whose spacing, as `described` has it, is below 2 mm, and slabs
    of 5 mm, the spacing of the competition's series; 0 averages none; otherwise series of which at
    least two slices make a slab. A slab bears what its middle slice does, and stands for the slices
    in it that together are `slab` thick. Adds `averaged`, how many these are (1 elsewhere), and, if
    there are any, `source`, which of the files or arrays are averaged (see `images.Source`).
    """
    slices = slices.assign(averaged=1)
    spacing = described.set_index("series")["spacing"].astype(float)
    width = USUAL_SPACING if slab is None else slab
    thin = spacing < (LEAST_SPACING if slab is None else width / 1.5)
    if slab == 0 or not slices["series"].map(thin).any():
        return slices
    thickness = described.set_index("series")["SliceThickness"].astype(float)
    sources = slices["source"] if "source" in slices else slices["path"]
    slices, parts = slices.assign(source=sources), []
    for name, part in slices.groupby("series", sort=False):
        step = spacing[name]
        thick = step if np.isnan(thickness[name]) else thickness[name]
        parts.append(_cut_slabs(part, step, thick, width) if thin[name] else part)
    averaged = pd.concat(parts, ignore_index=True)
    log.warning(
        "%s of %s averaged to %s of %g mm; to predict each slice, --slab 0",
        format_count(int(slices["series"].map(thin).sum()), "slice"),
        f"{int(thin[slices['series'].unique()].sum())} thin series",
        format_count(int(averaged["series"].map(thin).sum()), "slab"),
        width,
    )
    return averaged


def _cut_slabs(part: pd.DataFrame, spacing: float, thickness: float, width: float) -> pd.DataFrame:
    """The slabs of one series, in order, from its slices; all lengths in mm."""
    positions = part["position"].to_numpy(np.float64)
    slab = np.floor((positions - positions[0] + spacing / 2) / width)
    # n slices of this thickness, one spacing apart, together are (n - 1) spacings and one thick.
    most = max(1, round((width - thickness) / spacing) + 1)
    rows, sources, counts = [], [], []
    for number in np.unique(slab):
        inside = np.flatnonzero(slab == number)
        distance = np.abs(positions[inside] - positions[inside].mean())
        order = np.argsort(distance, kind="stable")
        # Of two acquisitions at the same places both are in a slab, and it is as thick.
        _, first, places = np.unique(
            positions[inside].round(2), return_index=True, return_inverse=True
        )
        taken = inside[np.isin(places, places[order[np.isin(order, first)][:most]])]
        rows.append(inside[order[0]])
        sources.append(tuple(part["source"].iloc[taken]))
        counts.append(len(taken))
    cut = part.iloc[rows].copy()
    cut["source"] = pd.Series(sources, cut.index, dtype=object)
    return cut.assign(averaged=counts, seq=np.arange(len(cut)) + 1)
