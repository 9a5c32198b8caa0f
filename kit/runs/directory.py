"""The run directory: the names of its files, its configuration, its lock; imports nothing heavy."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

import kit
from kit import KitError, recipes
from kit.files import hash_file, read_json, write_json
from kit.recipes import Recipe

ALL_DATA = "all"  # the fold of a model that was trained on everything
_BEGIN = "kit run or kit index begins one; kit fetch and kit import-model bring one"
FILES = "files_sha256"  # in `config.json`: the names and sizes of the data's files
# What is noted there too, and may differ where a run is continued.
_NOTES = ("kit", "provenance", "synthetic", FILES, "joint")


class RunError(KitError, ValueError):
    """A run directory cannot be used or continued; the text says why and what to do."""


class _File:
    """A file of fixed name in a run directory: an attribute of `Run` that gives its path."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, run: Run, owner: type) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class Run:
    """One trained set of folds, as a directory. Its files are named here and nowhere else."""

    path: Path

    config = _File("config.json")
    slices = _File("slices.parquet")
    skipped = _File("skipped.csv")
    filled = _File("filled.csv")
    oof = _File("oof.parquet")
    test = _File("test.parquet")
    metrics = _File("metrics.json")
    timings = _File("timings.json")
    plan = _File("plan.json")  # only where hours were given; runs of version 0.1.0 have none
    submission = _File("submission.csv")
    report = _File("report.html")
    patients = _File("patients.json")
    calibration = _File("calibration.json")
    shares = _File("shares.json")  # only where the bag is mixed with the classifiers

    def __str__(self) -> str:
        return str(self.path)

    def explanation(self, series: str) -> Path:
        """The page that explains one series, by its SeriesInstanceUID."""
        return self.path / f"explain_{re.sub('[^A-Za-z0-9._-]', '_', series)[:100]}.html"

    def classifier(self, fold: int | str) -> Path:
        """The folder of a fold's classifier: `epoch{n}.safetensors`, `history.json`."""
        return self.path / f"fold{fold}" / "classifier"

    def store(self, fold: int | str, epoch: int) -> Path:
        """The folder of the embeddings that classifier epoch `epoch` computed."""
        return self.path / f"fold{fold}" / "embeddings" / f"epoch{epoch}"

    def lstm(self, fold: int | str, epoch: int) -> Path:
        """The folder of the LSTM trained on the embeddings of classifier epoch `epoch`."""
        return self.path / f"fold{fold}" / "lstm" / f"epoch{epoch}"

    def joint(self, fold: int | str) -> Path:
        """The folder in which a fold's classifier and LSTM are trained as one network."""
        return self.path / f"fold{fold}" / "joint"

    def predictions(self, fold: int | str, epoch: int, lstm_epoch: int) -> Path:
        """One member of the bag: its probabilities of the held-out and test slices."""
        return self.lstm(fold, epoch) / f"predictions{lstm_epoch}.parquet"


def begin_run(
    run: Run,
    recipe: Recipe,
    data: Path,
    fold_table: Path | None = None,
    synthetic: bool = False,
) -> None:
    """Write `config.json`; where the run has begun, check that data and recipe are the same.

    `synthetic` is noted for those who predict with the run. What `import_model` noted stays.
    Raises `RunError` naming the first field that differs.
    """
    wanted = {"data": str(data), "recipe": recipes.to_dict(recipe)}
    if fold_table is not None:
        wanted["fold_table_sha256"] = hash_file(fold_table)
    config = read_config(run) if run.config.exists() else {}
    notes = {"synthetic": True} if synthetic else {}
    if "provenance" in config:
        notes["provenance"] = config["provenance"]
    imported = "provenance" in config and "data" not in config
    if config and not imported and (run.slices.exists() or any(run.path.glob("fold*"))):
        # An older version's recipe lacks the options that are newer than it.
        noted = {**config, "recipe": recipes.to_dict(read_recipe(run))}
        noted = {name: noted[name] for name in noted if name not in _NOTES}
        require_same(run, noted, wanted)
    elif is_first():
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.config, {"kit": kit.__version__, **wanted, **notes})


def require_same(run: Run, noted: dict, wanted: dict) -> None:
    """Raise `RunError` naming the first value that a run was begun with and that is another now."""
    before, now = (_flatten(json.loads(json.dumps(value))) for value in (noted, wanted))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise RunError(
                f"{run} was begun with {name} = {before.get(name)}, not {now.get(name)}: "
                "name another run directory, or continue with the same values"
            )


def read_config(run: Run) -> dict:
    """Read `config.json`: `recipe`, and unless the run was exported `kit` (version) and `data`."""
    if not run.config.exists():
        near = filter(_is_run, (run.path.absolute().parent, *sorted(run.path.glob("*/"))))
        advice = f"is it {folder}?" if (folder := next(near, None)) else _BEGIN
        raise RunError(f"{run}: there is no run here ({advice})")
    config = read_document(run.config, {"recipe": dict})
    for name in ("kit", "data"):
        if not isinstance(config.get(name, ""), str):
            raise RunError(f"{run.config}: not a run's configuration ({name} is not a text)")
    return config


def _is_run(folder: Path) -> bool:
    try:
        return Run(folder).config.exists() and bool(read_config(Run(folder)))
    except (KitError, OSError):
        return False


def read_recipe(run: Run) -> Recipe:
    """Read the recipe a run was begun with. Raises `RunError` where there is none."""
    config = read_config(run)
    try:
        return recipes.from_dict(config["recipe"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{run.config}: not a run's configuration ({error})") from error


def list_folds(recipe: Recipe) -> list[int | str]:
    """List the folds a recipe trains; [`ALL_DATA`] for one model on everything."""
    return list(recipe.train_folds) or [ALL_DATA]


def is_imported(run: Run, recipe: Recipe, fold: int | str) -> bool:
    """Whether the embeddings of the fold were imported; then it has no classifier."""
    path = run.store(fold, recipe.classifier.epochs) / "store.json"
    return path.exists() and "imported" in read_document(path)


def list_classifier_epochs(recipe: Recipe) -> range:
    """List the last classifier epochs, whose embeddings are used."""
    last = recipe.classifier.epochs
    return range(last - recipe.bag_classifier_epochs + 1, last + 1)


def list_lstm_epochs(recipe: Recipe) -> range:
    """List the LSTM epochs that predict: the last ones, or the one that has their mean weights."""
    averaged = 1 if recipe.average_weights else recipe.bag_lstm_epochs
    return range(recipe.lstm.epochs - averaged + 1, recipe.lstm.epochs + 1)


def list_kept_epochs(recipe: Recipe) -> tuple[range, range]:
    """List the epochs of classifier and LSTMs whose weights stay once all have predicted."""
    averaged = list_classifier_epochs(recipe), list_lstm_epochs(recipe)
    classifier, lstm = (epochs[-recipe.kept_epochs :] for epochs in averaged)
    return classifier, lstm


def _refuse_half(run: Run) -> None:
    """Say of an imported classifier alone what it lacks, and which command trains that."""
    if not read_config(run).get("provenance", {}).get("complete", True):
        raise RunError(
            f"{run} is a classifier alone, without a model over series: "
            f"kit run DATA --recipe single --run {run} trains one"
        )


def list_members(run: Run, recipe: Recipe) -> dict[Path, list[Path]]:
    """Map the weights of each kept classifier epoch to those of the LSTMs on its embeddings.

    Raises `RunError` where one is missing.
    """
    members: dict[Path, list[Path]] = {}
    kept, kept_by_lstm = list_kept_epochs(recipe)
    for fold in list_folds(recipe):
        for epoch in kept:
            classifier = run.classifier(fold) / f"epoch{epoch}.safetensors"
            members[classifier] = []
            for number in kept_by_lstm:
                members[classifier].append(run.lstm(fold, epoch) / f"epoch{number}.safetensors")
            for weights in (classifier, *members[classifier]):
                if not weights.exists():
                    if weights != classifier:
                        _refuse_half(run)
                    raise RunError(f"{weights} is missing: the run {run} is not complete")
    return members


def require_file(path: Path, command: str) -> None:
    """Raise `RunError`, saying which command writes `path`, where it is missing."""
    if not path.exists():
        raise RunError(f"{path} is missing: run `{command}` first")


def read_document(path: Path, kinds: dict[str, type] | None = None) -> dict:
    """Read a JSON file of a run, an object with the entries `kinds`, each of its type.

    Raises `InputError` or `RunError`, naming the file, where kit did not write it.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise RunError(f"{path}: not a JSON object, as kit writes it")
    for name, kind in (kinds or {}).items():
        if not isinstance(document.get(name), kind):
            raise RunError(f"{path}: {name!r} is missing in it, or is not what kit writes")
    return document


@contextlib.contextmanager
def lock_run(run: Run, new: bool = False) -> Iterator[None]:
    """Keep other processes out of a run directory; with `new` make it where it is missing.

    Raises `RunError` where another process is at work there, and without `new` where there is no
    run.
    """
    if not is_first():
        yield
        return
    if new:
        run.path.mkdir(parents=True, exist_ok=True)
    else:
        read_config(run)
    with lock_folder(run.path):
        yield


def lock_part(run: Run, path: Path) -> contextlib.AbstractContextManager[None]:
    """Keep other processes out of one output of a run; others are worked on side by side.

    Raises `RunError` where another process is at work on it.
    """
    name = "-".join(path.relative_to(run.path).parts)
    return _hold(FileLock(run.path / f".{name}.lock"), path)


def lock_folder(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Keep other processes out of a folder. Raises `RunError` where one is at work there."""
    return _hold(FileLock(folder / ".lock"), folder)


def change_tables(run: Run) -> contextlib.AbstractContextManager:
    """Wait for a turn to change what stages that go side by side share: costs, skipped files."""
    return FileLock(run.path / ".tables.lock")


@contextlib.contextmanager
def _hold(lock: BaseFileLock, place: Path) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{place}: another process is at work here; wait for it") from error
    try:
        yield
    finally:
        lock.release()


def is_first() -> bool:
    """Whether this is the only process, or the first of those that `torchrun` started."""
    return int(os.environ.get("RANK", 0)) == 0


def _flatten(values: dict, prefix: str = "") -> dict:
    """Turn nested dictionaries into one whose names are joined by dots."""
    flat = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and value
        flat.update(_flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value})
    return flat
