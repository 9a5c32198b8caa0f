"""What the competition's organizer fixed: labels, their weights, the metric, the two CSV forms."""

from __future__ import annotations

import gzip
import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kit import KitError
from kit.files import MAX_MEMBER_BYTES, list_archive, open_file, open_whole, split_archive

SLUG = "rsna-intracranial-hemorrhage-detection"
LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
LABEL_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)

# Share of positive slices among the 752,802 usable ones of `stage_2_train.csv`.
TRAINING_PRIOR = dict(
    zip(LABELS, np.array([3145, 36118, 26205, 35675, 47166, 107933]) / 752802, strict=True)
)


# What reading a damaged, cut or wrongly packed file raises.
_UNREADABLE = (
    OSError, EOFError, UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


# An image's name as it stands in a CSV: without what would have to be quoted, or cannot be seen.
_IMAGE = re.compile(r"[^\",\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class LabelError(KitError, ValueError):
    """A label file or submission is wrong; the text names the file, the line and the reason."""


def weighted_log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Compute the competition's metric: mean log loss per label, weights (1, 1, 1, 1, 1, 2) / 7.

    `labels` and `probabilities` are (N, 6) in the order of `LABELS`. Probabilities of exactly
    0 or 1 are moved by one float64 epsilon, as scikit-learn's `log_loss` does.
    """
    return float(np.average(label_log_losses(labels, probabilities), weights=LABEL_WEIGHTS))


def label_log_losses(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Compute the mean log loss of each label, (6,); arguments as in `weighted_log_loss`."""
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
    """Read a label file in the organizer's long form (`ID,Label`, six rows per image).

    Returns int8 0/1, one row per image indexed by `SOPInstanceUID` in the file's order, columns
    `LABELS`. Identical duplicate rows (the organizer's file has 24) are dropped. Plain, gzipped
    and zipped files are read, with or without a byte-order mark and with any line ending.

    Raises `LabelError` naming the file and the line for contradictory duplicates, missing labels,
    values other than 0 and 1, and images whose `any` is not the OR of the other five labels.
    """
    wide = _widen_table(csv, read_table(csv), duplicates=True)
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
    """Read a submission to (images × `LABELS`) float64 probabilities.

    Rows keep the order in which the images first occur. Raises `LabelError` naming the file and
    the line for a wrong header, an unknown label, a duplicate or missing row, and a value that is
    not a number in [0, 1].
    """
    return _widen_table(csv, read_table(csv))


def to_submission(wide: pd.DataFrame) -> pd.DataFrame:
    """Turn (images × `LABELS`), indexed by SOPInstanceUID, into the long form `ID, Label`."""
    values = wide[list(LABELS)].to_numpy()
    suffixes = np.array([f"_{label}" for label in LABELS], dtype=object)
    ids = np.asarray(wide.index, dtype=object)[:, None] + suffixes[None, :]
    return pd.DataFrame({"ID": ids.ravel(), "Label": values.ravel()})


def read_table(csv: str | Path) -> pd.DataFrame:
    """Read the texts of the columns ID and Label; the index is the line in the file.

    Raises `LabelError` where the file cannot be read or has other columns.
    """
    try:
        with _open_csv(csv) as source:
            # Blank lines are kept at first, so that an index is a line.
            options = {"dtype": object, "keep_default_na": False, "skip_blank_lines": False}
            table = pd.read_csv(source, **options)
    except _UNREADABLE as error:
        if isinstance(error, FileNotFoundError | PermissionError) and error.errno is not None:
            raise
        raise LabelError(f"{csv}: not a CSV file that can be read: {error}") from error
    if list(table) != ["ID", "Label"]:
        raise LabelError(f"{csv}: the header must be ID,Label, not {','.join(table)}")
    if not isinstance(table.index, pd.RangeIndex):
        raise LabelError(f"{csv}: its rows have more than the two columns ID,Label")
    table.index += 2
    blank = (table["ID"] == "") & (table["Label"] == "")
    return table[~blank] if blank.any() else table


def _widen_table(csv: str | Path, table: pd.DataFrame, duplicates: bool = False) -> pd.DataFrame:
    """Turn what `read_table` returns into (images × `LABELS`) float64, images as they first occur.

    Raises `LabelError`, see `read_labels`; with `duplicates` identical rows may repeat.
    """
    if table.empty:
        raise LabelError(f"{csv}: there is no row in it")
    cells, images = _number_cells(csv, table["ID"])
    values = pd.to_numeric(table["Label"], errors="coerce").to_numpy(np.float64)
    _refuse(csv, table, ~((values >= 0) & (values <= 1)), "has a Label that is no number in [0, 1]")
    repeated = pd.Series(cells).duplicated().to_numpy()
    wide = np.full(len(images) * len(LABELS), np.nan)
    wide[cells[~repeated]] = values[~repeated]
    _refuse(csv, table, wide[cells] != values, "occurs twice with different Labels")
    if not duplicates:
        _refuse(csv, table, repeated, "occurs twice")
    if np.isnan(wide).any():
        row, column = divmod(int(np.isnan(wide).argmax()), len(LABELS))
        raise LabelError(f"{csv}: row {images[row]}_{LABELS[column]} is missing")
    index = pd.Index(images, name="SOPInstanceUID")
    return pd.DataFrame(wide.reshape(-1, len(LABELS)), index, list(LABELS))


def _number_cells(csv: str | Path, ids: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Give the cell of each id in (images × `LABELS`), row by row, and the images."""
    columns = {label: column for column, label in enumerate(LABELS)}
    images: dict[str, int] = {}
    cells = []
    for line, name in ids.items():
        image, _, label = name.rpartition("_")
        if label not in columns:
            raise LabelError(f"{csv}: line {line} ({name!r}) does not end in one of the six labels")
        if image not in images:
            if not _IMAGE.fullmatch(image):
                raise LabelError(f"{csv}: line {line} ({name!r}) names no image as a CSV can")
            images[image] = len(images)
        cells.append(images[image] * len(LABELS) + columns[label])
    return np.array(cells), list(images)


def _refuse(csv: str | Path, table: pd.DataFrame, wrong: np.ndarray, reason: str) -> None:
    """Raise `LabelError` naming the first line of `table` that is `wrong` (N,)."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise LabelError(f"{csv}: line {table.index[row]} ({table['ID'].iloc[row]!r}) {reason}")


def _open_csv(csv: str | Path) -> BinaryIO:
    """Open the file, unpacked where it is gzipped, zipped alone, or a member of a zip."""
    if split_archive(csv)[0] is not None:
        return open_file(csv)
    if str(csv).lower().endswith(".zip"):
        members = [path for path in list_archive(csv) if not _is_hidden(path[len(str(csv)) + 1 :])]
        if len(members) != 1:
            raise LabelError(f"{csv}: holds {len(members)} files, not one")
        return open_file(members[0])
    if not str(csv).lower().endswith(".gz"):
        return open_whole(str(csv))
    with gzip.open(open_file(str(csv))) as file:
        content = file.read(MAX_MEMBER_BYTES + 1)
    if len(content) > MAX_MEMBER_BYTES:
        raise LabelError(f"{csv}: inflates to more than {MAX_MEMBER_BYTES / 1e6:.0f} MB")
    return io.BytesIO(content)


def _is_hidden(member: str) -> bool:
    """Whether a member is one of the files that a Mac or an editor adds to an archive."""
    return member.startswith("__MACOSX/") or member.rsplit("/", 1)[-1].startswith(".")
