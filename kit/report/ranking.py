"""Which series a page shows: the worst of every label, and a fair sample of the rest."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.competition import LABELS


def rank_series(
    table: pd.DataFrame, values: np.ndarray, shown: int, measure: str = "mean"
) -> tuple[list, pd.DataFrame]:
    """Which series to show: the worst of every label, and a fair sample of the rest.

    `values` (N, 7) are the slices' losses, or where the truth is unknown their probabilities; a
    series is rated by their `measure`, `"mean"` or `"max"`. `shown` series are named. Four fifths
    are taken in turn from seven lists, one a label and the weighted mean, each with the highest
    first: of 50 series at least the five worst of each. The others are spread evenly over the
    ranks that are left. Returns them, and every series' rates (series × 7), both with the highest
    weighted one first.
    """
    columns = [*LABELS, "weighted"]
    frame = pd.DataFrame(values, columns=columns).assign(series=table["series"].to_numpy())
    rates = frame.groupby("series").agg(measure)
    rates = rates.sort_values("weighted", ascending=False, kind="stable")
    if len(rates) <= shown:
        return rates.index.tolist(), rates
    ranked = np.argsort(-rates.to_numpy(), axis=0, kind="stable")  # place in `rates` by rank
    in_turn = pd.unique(ranked.ravel())  # of each rank, all lists
    worst = in_turn[: shown * 4 // 5]
    rest = np.setdiff1d(in_turn, worst)
    spread = np.linspace(0, len(rest) - 1, shown - len(worst))
    places = np.sort([*worst, *rest[np.round(spread).astype(int)]])
    return rates.index[places].tolist(), rates
