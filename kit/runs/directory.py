"""The run directory: the names of its files, its configuration, its tables, its lock."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout
from pyarrow import ArrowException

import kit
from kit import KitError, progress, recipes
from kit.files import hash_file, read_json, replace_file, write_json
from kit.recipes import Recipe
from kit.training.distributed import choose_device, rank, world_size

ALL_DATA = "all"  # the fold of a model that was trained on everything


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
    submission = _File("submission.csv")
    report = _File("report.html")

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

    def predictions(self, fold: int | str, epoch: int, lstm_epoch: int) -> Path:
        """One member of the bag: its probabilities of the held-out and test slices."""
        return self.lstm(fold, epoch) / f"predictions{lstm_epoch}.parquet"


def begin_run(run: Run, recipe: Recipe, data: Path, fold_table: Path | None = None) -> None:
    """Write `config.json`; where the run has begun, check that data and recipe are the same.

    Raises `RunError` naming the first field that differs.
    """
    wanted = {"data": str(data), "recipe": recipes.to_dict(recipe)}
    if fold_table is not None:
        wanted["fold_table_sha256"] = hash_file(fold_table)
    if run.config.exists() and (run.slices.exists() or any(run.path.glob("fold*"))):
        # An older version's recipe lacks the options that are newer than it.
        noted = {**read_config(run), "recipe": recipes.to_dict(read_recipe(run))}
        before, now = (_flatten(json.loads(json.dumps(config))) for config in (noted, wanted))
        for name in sorted((before.keys() | now.keys()) - {"kit"}):
            if before.get(name) != now.get(name):
                raise RunError(
                    f"{run} was begun with {name} = {before.get(name)}, not {now.get(name)}: "
                    "name another run directory, or continue with the same values"
                )
    elif rank() == 0:
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(run.config, {"kit": kit.__version__, **wanted})


def read_config(run: Run) -> dict:
    """Read `config.json`: `recipe`, and unless the run was exported `kit` (version) and `data`."""
    if not run.config.exists():
        raise RunError(f"{run}: there is no run here (begin one by kit run or kit index)")
    config = read_document(run.config)
    if "recipe" not in config:
        raise RunError(f"{run.config}: not a run's configuration")
    return config


def read_recipe(run: Run) -> Recipe:
    """Read the recipe a run was begun with. Raises `RunError` where there is none."""
    config = read_config(run)
    try:
        return recipes.from_dict(config["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.config}: not a run's configuration ({error})") from error


def read_slices(run: Run) -> pd.DataFrame:
    """Read the slice table of a run."""
    require_file(run.slices, f"kit index DATA --run {run}")
    return read_frame(run.slices)


def list_folds(recipe: Recipe) -> list[int | str]:
    """List the folds a recipe trains; [`ALL_DATA`] for one model on everything."""
    return list(recipe.train_folds) or [ALL_DATA]


def list_classifier_epochs(recipe: Recipe) -> range:
    """List the last classifier epochs, whose embeddings are used."""
    last = recipe.classifier.epochs
    return range(last - recipe.bag_classifier_epochs + 1, last + 1)


def list_lstm_epochs(recipe: Recipe) -> range:
    """List the last LSTM epochs, which are averaged."""
    return range(recipe.lstm.epochs - recipe.bag_lstm_epochs + 1, recipe.lstm.epochs + 1)


def list_members(run: Run, recipe: Recipe) -> dict[Path, list[Path]]:
    """Map the weights of each kept classifier epoch to those of the LSTMs on its embeddings.

    Raises `RunError` where one is missing.
    """
    members = {}
    for fold in list_folds(recipe):
        for epoch in list_classifier_epochs(recipe):
            lstms = [
                run.lstm(fold, epoch) / f"epoch{number}.safetensors"
                for number in list_lstm_epochs(recipe)
            ]
            members[run.classifier(fold) / f"epoch{epoch}.safetensors"] = lstms
    for classifier, lstms in members.items():
        for weights in (classifier, *lstms):
            if not weights.exists():
                raise RunError(f"{weights} is missing: the run {run} is not complete")
    return members


def require_file(path: Path, command: str) -> None:
    """Raise `RunError`, saying which command writes `path`, where it is missing."""
    if not path.exists():
        raise RunError(f"{path} is missing: run `{command}` first")


def read_document(path: Path) -> dict:
    """Read a JSON file of a run. Raises `RunError` where kit did not write it."""
    try:
        document = read_json(path)
    except ValueError as error:
        raise RunError(f"{path}: not a run's configuration ({error})") from error
    if not isinstance(document, dict):
        raise RunError(f"{path}: not a run's configuration")
    return document


def read_frame(path: Path) -> pd.DataFrame:
    """Read a table that `write_frame` wrote. Raises `RunError` where it is damaged."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype={"SOPInstanceUID": str, "series": str})
    except (ArrowException, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise RunError(f"{path}: not a table that can be read ({error})") from error


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV or parquet, by its name: beside its place, then move it there."""
    with replace_file(path) as part:
        if path.suffix == ".parquet":
            # Numbers and ids gain nothing from a dictionary, and would be read half as fast.
            texts = frame.select_dtypes(exclude="number")
            repeated = [name for name in texts if not texts[name].is_unique]
            frame.to_parquet(part, index=False, compression="lz4", use_dictionary=repeated)
        else:
            frame.to_csv(part, index=False, float_format="%.6g")


@contextlib.contextmanager
def lock_run(run: Run, new: bool = False) -> Iterator[None]:
    """Keep other processes out of a run directory; with `new` make it where it is missing.

    Raises `RunError` where another process is at work there, and without `new` where there is no
    run.
    """
    if int(os.environ.get("RANK", 0)) != 0:
        yield
        return
    if new:
        run.path.mkdir(parents=True, exist_ok=True)
    else:
        read_config(run)
    with lock_folder(run.path):
        yield


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. Raises `RunError` where one is at work there."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{folder}: another process is at work here; wait for it") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def time_stage(run: Run, stage: str, writes: Path) -> Iterator[None]:
    """Announce where a stage writes, and add what it costs to `timings.json`.

    Costs are wall-clock seconds, processor seconds (of the first process and the workers it has
    waited for) and GPU seconds.
    """
    if rank() == 0:
        progress.announce(f"{stage} → {writes}")
    clock, processors = time.monotonic(), _processor_seconds()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk is reported by what failed first
            _add_cost(run, stage, clock, processors)
        raise
    _add_cost(run, stage, clock, processors)


def _processor_seconds() -> float:
    """Read the processor time of this process and of those it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _add_cost(run: Run, stage: str, clock: float, processors: float) -> None:
    """Add what was spent since the readings `clock` and `processors`."""
    if rank() == 0:
        seconds = time.monotonic() - clock
        cost = {
            "seconds": seconds,
            "processor_seconds": _processor_seconds() - processors,
            "gpu_seconds": seconds * (choose_device().type == "cuda") * world_size(),
        }
        timings = read_document(run.timings) if run.timings.exists() else {}
        before = timings.get(stage, dict.fromkeys(cost, 0))
        timings[stage] = {name: round(before[name] + value, 2) for name, value in cost.items()}
        write_json(run.timings, timings)


def _flatten(values: dict) -> dict:
    """Turn nested dictionaries into one whose names are joined by dots."""
    return pd.json_normalize(values).to_dict("records")[0]
