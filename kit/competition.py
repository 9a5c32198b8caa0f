"""What the competition's host fixed: its labels, their weights, the two CSV forms, the metric."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from kit import KitError
from kit.files import MAX_MEMBER_BYTES, list_archive, open_file, split_archive

SLUG = "rsna-intracranial-hemorrhage-detection"
LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
LABEL_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)

# Share of positive slices among the 752,802 usable ones of `stage_2_train.csv`.
TRAINING_PRIOR = dict(
    zip(LABELS, np.array([3145, 36118, 26205, 35675, 47166, 107933]) / 752802, strict=True)
)


class LabelError(KitError, ValueError):
    """A label or submission file that cannot be believed; the text names file, row and reason."""


def weighted_log_loss(labels, probabilities) -> float:
    """The competition's metric: mean log loss per label, weights (1, 1, 1, 1, 1, 2) / 7.

    `labels` and `probabilities` are (N, 6) in the order of `LABELS`. Probabilities of exactly
    0 or 1 are moved by one float64 epsilon, as scikit-learn's `log_loss` does.
    """
    return float(np.average(label_log_losses(labels, probabilities), weights=LABEL_WEIGHTS))


def label_log_losses(labels, probabilities) -> np.ndarray:
    """Mean log loss of each label, shape (6,); arguments as in `weighted_log_loss`."""
    labels = np.asarray(labels, dtype=np.float64)
    epsilon = np.finfo(np.float64).eps
    probabilities = np.clip(np.asarray(probabilities, np.float64), epsilon, 1 - epsilon)
    if labels.shape != probabilities.shape or labels.ndim != 2 or labels.shape[1] != len(LABELS):
        raise ValueError(
            f"labels {labels.shape} and probabilities {probabilities.shape} must both be (N, 6)"
        )
    losses = np.where(labels > 0.5, np.log(probabilities), np.log1p(-probabilities))
    return -losses.mean(axis=0)


def read_labels(csv: str | Path) -> pd.DataFrame:
    """Read a label file of the host's long form (`ID,Label`, six rows an image).

    Returns int8 0/1, one row an image indexed by `SOPInstanceUID` in the file's order, columns
    `LABELS`. Equal duplicate rows (the host's file has 24) are dropped. Reads plain, gzipped and
    zipped files, with or without a byte-order mark, any line ending.

    Raises `LabelError` naming the file and the row for contradictory duplicates, missing labels,
    values other than 0 and 1, and rows where `any` is not the OR of the other five.
    """
    wide = _read_long(csv, duplicates=True)
    values = wide.to_numpy()
    wrong = ~np.isin(values, (0.0, 1.0)).all(axis=1)
    if wrong.any():
        raise LabelError(
            f"{csv}: image {wide.index[wrong.argmax()]} has a label that is not 0 or 1"
        )
    wrong = values[:, :5].max(axis=1) != values[:, 5]
    if wrong.any():
        image = wide.index[wrong.argmax()]
        raise LabelError(f"{csv}: image {image}: `any` contradicts the other five labels")
    return wide.astype(np.int8)


def read_submission(csv: str | Path) -> pd.DataFrame:
    """Read a file of the submission's form to (images × `LABELS`) float64 probabilities.

    Rows keep the order in which the images first occur. Raises `LabelError` naming the file and
    the row for a wrong header, an unknown label, a duplicate or missing row, and a value that is
    not a number in [0, 1].
    """
    return _read_long(csv, duplicates=False)


def to_submission(wide: pd.DataFrame) -> pd.DataFrame:
    """(images × `LABELS`) indexed by SOPInstanceUID → the long form `ID, Label`."""
    values = wide[list(LABELS)].to_numpy()
    suffixes = np.array([f"_{label}" for label in LABELS], dtype=object)
    ids = np.asarray(wide.index, dtype=object)[:, None] + suffixes[None, :]
    return pd.DataFrame({"ID": ids.ravel(), "Label": values.ravel()})


def _read_long(csv: str | Path, duplicates: bool) -> pd.DataFrame:
    """The long form as a wide float64 table; see `read_labels` for what is refused."""
    ids, texts = read_columns(csv)
    if len(ids) == 0:
        raise LabelError(f"{csv}: there is no row in it")
    codes, images = _split_ids(csv, ids)
    labels = parse_numbers(texts)
    _refuse(csv, ids, ~((labels >= 0) & (labels <= 1)), "has a Label that is no number in [0, 1]")
    encoded = images.dictionary_encode()  # the images, in the order in which they first occur
    cells = encoded.indices.to_numpy().astype(np.int64) * len(LABELS) + codes
    counts = np.bincount(cells, minlength=len(encoded.dictionary) * len(LABELS))
    wide = np.full((len(encoded.dictionary), len(LABELS)), np.nan)
    wide.flat[cells] = labels
    if counts.max(initial=0) > 1:
        repeated = pd.Series(cells).duplicated().to_numpy()
        wide.flat[cells[~repeated]] = labels[~repeated]
        _refuse(csv, ids, wide.flat[cells] != labels, "occurs twice with different Labels")
        if not duplicates:
            _refuse(csv, ids, repeated, "occurs twice")
    index = pd.Index(encoded.dictionary.cast(pa.string()).to_pandas(), name="SOPInstanceUID")
    if (counts == 0).any():
        image, label = divmod(int(np.argmin(counts)), len(LABELS))
        raise LabelError(f"{csv}: row {index[image]}_{LABELS[label]} is missing")
    return pd.DataFrame(wide, index=index, columns=list(LABELS))


def _split_ids(csv: str | Path, ids: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Each row's label, as its place in `LABELS`, and image."""
    codes, images = np.full(len(ids), -1), []
    places, count = np.empty(len(ids), np.int64), 0  # of each row's image among `images`
    for code, label in enumerate(LABELS):
        rows = np.flatnonzero(pc.ends_with(ids, f"_{label}"))
        codes[rows], places[rows] = code, np.arange(count, count + len(rows))
        texts = ids.take(pa.array(rows)).cast(pa.binary())
        images.append(pc.binary_slice(texts, 0, -len(label) - 1))
        count += len(rows)
    _refuse(csv, ids, codes < 0, "does not end in one of the six labels")
    images = pa.concat_arrays(images).take(pa.array(places))
    _refuse(csv, ids, np.asarray(pc.binary_length(images)) == 0, "names no image")
    return codes, images


def parse_numbers(texts: pa.Array) -> np.ndarray:
    """Texts → float64, NaN where one is no number."""
    try:
        return texts.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return pd.to_numeric(texts.to_pandas(), errors="coerce").to_numpy(np.float64)


def read_columns(csv: str | Path) -> tuple[pa.Array, pa.Array]:
    """The texts of the columns ID and Label. Raises `LabelError` where there are no such two."""
    options = arrow_csv.ConvertOptions(
        column_types={"ID": pa.string(), "Label": pa.string()}, strings_can_be_null=False
    )
    try:
        with _open_csv(csv) as source:
            table = arrow_csv.read_csv(source, convert_options=options)
    except (pa.ArrowInvalid, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError | PermissionError) and error.errno is not None:
            raise
        reason = "there is no row in it" if "Empty CSV" in str(error) else error
        raise LabelError(f"{csv}: not a CSV file that can be read: {reason}") from error
    if table.column_names != ["ID", "Label"]:
        raise LabelError(f"{csv}: the header must be ID,Label, not {','.join(table.column_names)}")
    return tuple(table[name].combine_chunks() for name in ("ID", "Label"))


def _open_csv(csv: str | Path):
    """The file, unpacked where it is gzipped, zipped alone, or a member of a zip."""
    if split_archive(csv)[0] is not None:
        return open_file(csv)
    if str(csv).lower().endswith(".zip"):
        members = [path for path in list_archive(csv) if not _is_hidden(path[len(str(csv)) + 1 :])]
        if len(members) != 1:
            raise LabelError(f"{csv}: holds {len(members)} files, not one")
        return open_file(members[0])
    try:
        source = pa.input_stream(str(csv), compression="detect")
    except FileNotFoundError as error:  # Arrow's own sentence has no number and no name
        raise FileNotFoundError(2, "No such file or directory", str(csv)) from error
    return _inflate(source, csv) if isinstance(source, pa.CompressedInputStream) else source


def _is_hidden(member: str) -> bool:
    """Whether it is one of the files that a Mac or an editor adds to an archive."""
    return member.startswith("__MACOSX/") or member.rsplit("/", 1)[-1].startswith(".")


def _inflate(source: pa.NativeFile, csv: str | Path) -> pa.BufferReader:
    """A compressed file's content, up to the size that no competition's file reaches."""
    with source:
        content = source.read(MAX_MEMBER_BYTES + 1)
    if len(content) > MAX_MEMBER_BYTES:
        raise LabelError(f"{csv}: inflates to more than {MAX_MEMBER_BYTES / 1e6:.0f} MB")
    return pa.BufferReader(content)


def _refuse(csv: str | Path, ids: pa.Array, wrong: np.ndarray, reason: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise LabelError(f"{csv}: line {find_line(csv, row)} ({ids[row].as_py()!r}) {reason}")


def find_line(csv: str | Path, row: int) -> int:
    """The line, from 1, on which the row `row`, from 0, of a CSV file is; blank lines are none."""
    with _open_csv(csv) as source:
        lines = source.read().splitlines()
    return [number for number, line in enumerate(lines, start=1) if line][row + 1]
