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
)
from kit.ensemble import CLIP
from kit.files import replace_file
from kit.progress import format_count


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

    Rows have the order of `sample`, where given, whatever it is. Probabilities are clipped to
    [1e-5, 1 − 1e-5]. The file is written beside `path`, read back and validated (against `sample`
    where given), and only then renamed. Raises `LabelError` and leaves an earlier file as it was.
    """
    path = Path(path)
    values = np.clip(wide[list(LABELS)].to_numpy(np.float64), CLIP, 1 - CLIP)
    if not np.isfinite(values).all():
        image = wide.index[~np.isfinite(values).all(axis=1)][0]
        raise LabelError(f"{path}: image {image} has a probability that is not finite")
    rows = to_submission(wide).assign(Label=values.ravel())
    asked = rows["ID"] if sample is None else read_table(sample)["ID"]
    as_asked = np.array_equal(rows["ID"].to_numpy(object), asked.to_numpy(object))
    if not as_asked:
        places = pd.Index(rows["ID"]).get_indexer(asked)
        if len(places) == len(rows) and (places >= 0).all():  # else it is refused below
            rows = rows.iloc[places]
    with replace_file(path) as part:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write("ID,Label\n")
            lines = zip(rows["ID"].tolist(), rows["Label"].tolist(), strict=True)
            file.writelines(f"{name},{value:.6f}\n" for name, value in lines)
        # The sample's own rows need not be read a second time, which takes a second and a half.
        validate_submission(part, None if as_asked else sample)


def validate_submission(csv: str | Path, sample: str | Path | None = None) -> pd.DataFrame:
    """Read a submission in long form (`ID`, `Label`), or raise `LabelError` saying what is wrong.

    Checks the header, the six labels of each image, duplicates, and that every Label is a number
    in [0, 1]; with `sample` also that the ids are exactly the sample's, in any order.
    """
    wide = read_submission(csv)
    if sample is not None:
        asked = read_sample(sample)
        missing, extra = asked.difference(wide.index), wide.index.difference(asked)
        if len(missing) or len(extra):
            which = f"lacks {missing[0]}" if len(missing) else f"has {extra[0]}, not in the sample"
            counts = f"{format_count(len(missing), 'image')} missing, {len(extra)} too many"
            raise LabelError(f"{csv}: {which} ({counts})")
    return to_submission(wide)


def normalize_text(content: bytes) -> bytes:
    """The same rows without what a grader may stumble over: a byte-order mark, blank lines, \\r."""
    text = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return b"".join(line + b"\n" for line in text.split(b"\n") if line.strip(b","))


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
