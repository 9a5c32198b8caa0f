"""The competition's data as Kaggle and its mirrors lay it out, in a folder or in the zip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from kit.competition import LABELS, read_labels, read_submission
from kit.files import list_archive
from kit.processes import restart_once
from kit.slices.index import index_files, list_files

# Mirrors say `stage_2_train_images`.
_TRAIN_FOLDERS = ("stage_2_train", "stage_2_train_images")
_TEST_FOLDERS = ("stage_2_test", "stage_2_test_images")
_LABEL_FILE = "stage_2_train.csv"
SAMPLE_FILE = "stage_2_sample_submission.csv"


@dataclass(frozen=True)
class CompetitionFiles:
    """Where the parts of the competition's data lie; paths, or members `archive.zip/member`."""

    train: list[str]
    test: list[str]
    labels: str | None
    sample: str | None


def find_competition(data: str | Path, train: bool = True) -> CompetitionFiles:
    """Find the competition's files in a folder, at most two folders down, or in the zip.

    Without `train` the training files, 752,803 in the host's data, are not listed. Else raises
    `FileNotFoundError` saying what was looked for where there is neither part.
    """
    data = Path(data)
    if data.is_file() and data.suffix.lower() == ".zip":
        found = _find_in_archive(data)
    elif data.is_dir():
        found = _find_in_folder(data, train)
        archives = sorted(path for path in data.glob("*.zip") if not path.match("*.csv.zip"))
        if not found.train and not found.test and len(archives) == 1:
            found = _find_in_archive(archives[0])  # as `kit download` leaves it
    else:
        raise FileNotFoundError(f"{data}: there is no such folder or zip archive")
    if train and not found.train and not found.test:
        raise FileNotFoundError(
            f"{data}: neither {_TRAIN_FOLDERS[0]}/ nor {_TEST_FOLDERS[0]}/ holds DICOM files"
        )
    return found


@restart_once
def index_competition(
    data: str | Path, workers: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The slice table with `split` (train, test) and the labels (−1 in the test part), and skipped.

    A training file without labels, and labels without a file, are skipped with that reason.
    Raises `FileNotFoundError` where the training files have no label file.
    """
    files = find_competition(data)
    if files.train and files.labels is None:
        raise FileNotFoundError(f"{data}: {_LABEL_FILE} is missing")
    # What cannot be used is told now, not after the headers are read or all is trained.
    labels = read_labels(files.labels) if files.train and files.labels else None
    if files.test and files.sample is not None:
        read_submission(files.sample)
    slices, skipped = index_files(files.train + files.test, str(data), workers, unique=True)
    in_test = slices["path"].isin(set(files.test))
    slices["split"] = in_test.map({True: "test", False: "train"}).astype(str)
    if labels is None:
        return slices.assign(**{label: -1 for label in LABELS}), skipped
    slices = slices.join(labels.where(labels >= 0), on="SOPInstanceUID")
    unlabelled = ~in_test & slices["any"].isna()
    seen = set(slices["SOPInstanceUID"]) | set(skipped["SOPInstanceUID"].dropna())
    lost = labels.index[~labels.index.isin(seen)]
    refused = [
        skipped,
        _give_reason(
            slices.loc[unlabelled, skipped.columns.drop(["reason", "code"])],
            f"no labels in {_LABEL_FILE}",
        ),
        _give_reason(
            pd.DataFrame({"path": lost, "SOPInstanceUID": lost}),
            f"in {_LABEL_FILE}, but there is no readable file of it",
        ),
    ]
    skipped = pd.concat([part for part in refused if len(part)] or [skipped], ignore_index=True)
    slices = slices[~unlabelled].reset_index(drop=True)
    slices["seq"] = slices.groupby("series", sort=False).cumcount() + 1
    slices[list(LABELS)] = slices[list(LABELS)].where(slices["split"] == "train", -1).astype("int8")
    return slices, skipped


def _give_reason(files: pd.DataFrame, reason: str) -> pd.DataFrame:
    return files.assign(reason=reason, code=reason)


def _find_in_folder(data: Path, train: bool) -> CompetitionFiles:
    levels, parts = [[data]], _TRAIN_FOLDERS + _TEST_FOLDERS
    for _ in range(2):  # an extra folder with the competition's name occurs
        if any((root / name).exists() for root in levels[-1] for name in parts):
            break
        children = (child for root in levels[-1] for child in sorted(root.iterdir()))
        levels.append([child for child in children if child.is_dir()])
    roots = [root for level in levels for root in level]

    def list_first(names: tuple[str, ...]) -> list[str]:
        folders = (root / name for root in roots for name in names)
        folder = next((folder for folder in folders if folder.is_dir()), None)
        return [path for path in list_files(folder) if _is_image(path)] if folder else []

    def find_first(name: str) -> str | None:
        # Kaggle packs a large CSV file that is downloaded alone.
        paths = (root / (name + ending) for ending in ("", ".zip", ".gz") for root in roots)
        return next((str(path) for path in paths if path.is_file()), None)

    return CompetitionFiles(
        list_first(_TRAIN_FOLDERS) if train else [],
        list_first(_TEST_FOLDERS),
        find_first(_LABEL_FILE),
        find_first(SAMPLE_FILE),
    )


def _find_in_archive(data: Path) -> CompetitionFiles:
    paths = list_archive(data)
    # Its own path, before the members' names, says nothing of what is in it.
    members = {path: PurePosixPath(path[len(str(data)) + 1 :]).parts for path in paths}

    def select(names: tuple[str, ...]) -> list[str]:
        return [path for path in paths if _is_image(path) and set(names) & set(members[path])]

    def find_first(name: str) -> str | None:
        return next((path for path in paths if members[path][-1] == name), None)

    return CompetitionFiles(
        select(_TRAIN_FOLDERS),
        select(_TEST_FOLDERS),
        find_first(_LABEL_FILE),
        find_first(SAMPLE_FILE),
    )


def _is_image(path: str) -> bool:
    return path.lower().endswith(".dcm")
