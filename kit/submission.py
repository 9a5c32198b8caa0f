"""The submission file: complete it, write it, validate it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kit.competition import (
    LABELS,
    LabelError,
    read_submission,
    read_table,
    to_submission,
    widen_table,
)
from kit.ensemble import CLIP
from kit.files import replace_file


def read_sample(sample: str | Path) -> pd.Index:
    """The images that a sample submission asks for, in its order. Raises `LabelError`."""
    return read_submission(sample).index


def fill_missing(
    predictions: pd.DataFrame, images: pd.Index, places: pd.DataFrame, prior: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give every image of `images` a prediction, in that order.

    Where there is none, the slice's neighbours in its series are interpolated by position, or the
    nearest is taken; where none is known, `prior` (6,). `places` has `series` and `position` (mm)
    indexed by SOPInstanceUID, for missing and predicted slices alike. Returns the wide predictions
    and the list of what was filled: `SOPInstanceUID`, `filled_from`.
    """
    missing = images.difference(predictions.index, sort=False)
    complete = predictions.reindex(images)
    known = places.loc[places.index.isin(predictions.index)]
    known = known[~known.index.duplicated()].sort_values(["series", "position"])
    by_series = dict(list(known.groupby("series"))) if len(missing) else {}
    filled = []
    for image in missing:
        series, position = (
            places.loc[image, ["series", "position"]] if image in places.index else (None, 0.0)
        )
        neighbours = by_series.get(series)
        if neighbours is None:
            complete.loc[image], source = prior, "training prior"
        else:
            complete.loc[image], source = _interpolate(predictions, neighbours, position)
        filled.append((image, source))
    return complete, pd.DataFrame(filled, columns=["SOPInstanceUID", "filled_from"])


def write_submission(
    wide: pd.DataFrame, path: str | Path, sample: str | Path | None = None
) -> None:
    """Write (images × `LABELS`) probabilities in the organizer's long form with six decimals.

    Probabilities are clipped to [1e-5, 1 − 1e-5]. The file is written beside `path`, read back and
    validated (against `sample` where given), and only then renamed. Raises `LabelError` and leaves
    an earlier file as it was.
    """
    path = Path(path)
    values = np.clip(wide[list(LABELS)].to_numpy(np.float64), CLIP, 1 - CLIP)
    if not np.isfinite(values).all():
        image = wide.index[~np.isfinite(values).all(axis=1)][0]
        raise LabelError(f"{path}: image {image} has a probability that is not finite")
    with replace_file(path) as part:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write("ID,Label\n")
            for image, row in zip(wide.index, values.tolist(), strict=True):
                for label, value in zip(LABELS, row, strict=True):
                    file.write(f"{image}_{label},{value:.6f}\n")
        validate_submission(part, sample)


def validate_submission(csv: str | Path, sample: str | Path | None = None) -> pd.DataFrame:
    """Read a submission in long form (`ID`, `Label`), or raise `LabelError` saying what is wrong.

    Checks the header, the six labels of each image, duplicates, and that every Label is a number
    in [0, 1]; with `sample` also that the ids are exactly the sample's, in its order.
    """
    table = read_table(csv)
    wide = widen_table(csv, table)
    if sample is not None:
        _compare_ids(csv, table["ID"], sample)
    return to_submission(wide)


def _compare_ids(csv: str | Path, ids: pd.Series, sample: str | Path) -> None:
    """Raise `LabelError` where `ids` are not those of `sample`, in its order."""
    expected = read_table(sample)["ID"]
    if np.array_equal(ids, expected):
        return
    found, asked = ({name.rpartition("_")[0]: None for name in names} for names in (ids, expected))
    missing = [name for name in asked if name not in found]
    extra = [name for name in found if name not in asked]
    if missing or extra:
        which = f"lacks {missing[0]}" if missing else f"has {extra[0]}, not in the sample"
        raise LabelError(f"{csv}: {which} ({len(missing)} images missing, {len(extra)} too many)")
    for (line, name), other in zip(ids.items(), expected, strict=False):
        if name != other:
            raise LabelError(
                f"{csv}: line {line} is {name}, in the sample {other}: the order differs"
            )


def _interpolate(predictions, neighbours: pd.DataFrame, position: float):
    """Between the nearest predicted slice on either side; `neighbours` sorted by position."""
    places = neighbours["position"].to_numpy(np.float64)
    after = int(np.searchsorted(places, position))
    chosen = [number for number in (after - 1, after) if 0 <= number < len(places)]
    names = neighbours.index[chosen]
    values = predictions.loc[names].to_numpy(np.float64)
    if len(chosen) == 1 or places[chosen[0]] == places[chosen[1]]:
        value = values.mean(axis=0)
    else:
        share = (position - places[chosen[0]]) / (places[chosen[1]] - places[chosen[0]])
        value = (1 - share) * values[0] + share * values[1]
    return value, "neighbours " + " and ".join(names)
