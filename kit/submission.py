"""The submission file: complete it, write it, validate it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from kit.competition import (
    LABELS,
    LabelError,
    find_line,
    parse_numbers,
    read_columns,
    read_submission,
    to_submission,
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
    """Write (images × `LABELS`) probabilities as the host's long form, six decimals.

    Clipped to [1e-5, 1 − 1e-5]. The file is written beside its place, validated (against `sample`
    where given), and only then renamed. Raises `LabelError` and leaves an earlier file as it was.
    """
    path = Path(path)
    values = np.clip(wide[list(LABELS)].to_numpy(np.float64), CLIP, 1 - CLIP)
    if not np.isfinite(values).all():
        image = wide.index[~np.isfinite(values).all(axis=1)][0]
        raise LabelError(f"{path}: image {image} has a probability that is not finite")
    ids = _format_ids(wide.index)
    table = pa.table({"ID": ids, "Label": _format_probabilities(values)})
    bare = arrow_csv.WriteOptions(include_header=False, quoting_style="none")
    with replace_file(path) as part:
        with open(part, "wb") as file:
            file.write(b"ID,Label\n")
            arrow_csv.write_csv(table, file, bare)
        # The usual case by the texts alone, which is much faster than taking them apart.
        names = wide.index
        if not (names.is_unique and "" not in names and _holds(part, ids, sample)):
            _read_valid(part, sample)


def _holds(csv: Path, ids: pa.Array, sample: str | Path | None) -> bool:
    """Whether the file has these ids, as the sample has, and a probability in each row."""
    found, texts = read_columns(csv)
    probabilities = parse_numbers(texts)
    return (
        found.equals(ids)
        and bool(((probabilities >= 0) & (probabilities <= 1)).all())
        and (sample is None or read_columns(sample)[0].equals(ids))
    )


def validate_submission(csv: str | Path, sample: str | Path | None = None) -> pd.DataFrame:
    """Read a submission in long form (`ID`, `Label`), or raise `LabelError` saying what is wrong.

    Checks the header, the six labels of each image, duplicates, and that every Label is a number
    in [0, 1]; with `sample` also that the ids are exactly the sample's, in its order.
    """
    return to_submission(_read_valid(csv, sample))


def _read_valid(csv: str | Path, sample: str | Path | None) -> pd.DataFrame:
    wide = read_submission(csv)
    if sample is None:
        return wide
    expected = read_sample(sample)
    if not wide.index.equals(expected):
        missing, extra = expected.difference(wide.index), wide.index.difference(expected)
        if len(missing) or len(extra):
            which = f"lacks {missing[0]}" if len(missing) else f"has {extra[0]}, not in the sample"
            raise LabelError(
                f"{csv}: {which} ({len(missing)} images missing, {len(extra)} too many)"
            )
        row = int(np.argmax(wide.index != expected))
        raise LabelError(
            f"{csv}: image {row + 1} is {wide.index[row]}, in the sample {expected[row]}: "
            "the order differs"
        )
    ids, expected = (read_columns(path)[0] for path in (csv, sample))
    if not ids.equals(expected):
        row = pc.index(pc.not_equal(ids, expected), True).as_py()
        raise LabelError(
            f"{csv}: line {find_line(csv, row)} is {ids[row]}, in the sample {expected[row]}: "
            "the order differs"
        )
    return wide


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


def _format_ids(images: pd.Index) -> pa.Array:
    names = pa.array(np.asarray(images, dtype=object), pa.string())
    repeated = names.take(pa.array(np.repeat(np.arange(len(images)), len(LABELS))))
    labels = pa.array(list(LABELS)).take(pa.array(np.tile(np.arange(len(LABELS)), len(images))))
    return pc.binary_join_element_wise(repeated, labels, "_")


def _format_probabilities(values: np.ndarray) -> pa.Array:
    """(N, 6) in (0, 1) → texts of the form 0.dddddd; digit by digit, for formatting is slow."""
    millionths = np.rint(values.ravel() * 1e6).astype(np.int32)
    digits = np.empty((len(millionths), 8), dtype=np.uint8)
    digits[:, 0], digits[:, 1] = ord("0"), ord(".")
    for place in range(7, 1, -1):
        millionths, digit = np.divmod(millionths, 10)
        digits[:, place] = digit + ord("0")
    offsets = pa.py_buffer(np.arange(0, 8 * len(digits) + 1, 8, dtype=np.int32))
    return pa.StringArray.from_buffers(len(digits), offsets, pa.py_buffer(digits))
