"""How long a planned run still takes: the plan, corrected by what its stages took so far."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kit import progress
from kit.files import write_json
from kit.recipes import Recipe
from kit.runs import status
from kit.runs.directory import (
    Run,
    RunError,
    change_tables,
    list_classifier_epochs,
    list_folds,
    read_document,
    read_recipe,
)
from kit.runs.timings import read_timings
from kit.training.distributed import rank
from kit.training.loop import OutOfTime

_Work = tuple[str, float, float]  # kind of stage, share that is done, seconds that this took


def estimate_left(run: Run) -> float:
    """The seconds that a run with a plan still takes.

    Where epochs or stores are done, stages of their kind go on as these went, not as planned.
    Raises `RunError` for a plan that kit did not write.
    """
    planned, work = _read_planned(run), _list_work(run, read_recipe(run))
    left = 0.0
    for name, seconds in planned.items():
        kind, done, _ = work.get(name, (name, 0.0, 0.0))
        left += seconds * (1 - done) * _correct(kind, planned, work)
    return left


def _correct(kind: str, planned: dict[str, float], work: dict[str, _Work]) -> float:
    """How many times as long as planned the stages of a kind took; 1 where nothing is done."""
    expected = spent = 0.0
    for name, (other, done, seconds) in work.items():
        if other == kind and done > 0 and name in planned:
            expected, spent = expected + planned[name] * done, spent + seconds
    return spent / expected if expected > 0 else 1.0


def _list_work(run: Run, recipe: Recipe) -> dict[str, _Work]:
    """What is done of each stage, by its name in `timings.json`."""
    seconds = {name: cost["seconds"] for name, cost in read_timings(run).items()}
    work = {"index": ("index", float(run.slices.exists()), seconds.get("index", 0.0))}
    for fold in list_folds(recipe):
        epochs = list_classifier_epochs(recipe)
        stores = sum((run.store(fold, epoch) / "store.json").exists() for epoch in epochs)
        name = f"fold{fold} embeddings"
        work[name] = ("embeddings", stores / len(epochs), seconds.get(name, 0.0))
        lstms = [run.lstm(fold, epoch) for epoch in epochs]
        for kind, folders, total in (
            ("classifier", [run.classifier(fold)], recipe.classifier.epochs),
            ("LSTM", lstms, recipe.lstm.epochs * len(lstms)),
        ):
            history = [epoch for folder in folders for epoch in status.read_epochs(folder)]
            name, spent = f"fold{fold} {kind}", sum(epoch.get("seconds", 0.0) for epoch in history)
            if len(history) >= total:  # then with the checks, predictions and starts in between
                spent = seconds.get(name, spent)
            work[name] = (kind, len(history) / total, spent)
    return work


def _read_planned(run: Run) -> dict[str, float]:
    try:
        stages = read_document(run.plan, {"stages": list})["stages"]
        return {str(stage["name"]): float(stage["seconds"]) for stage in stages}
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"{run.plan}: not a plan as kit writes it; remove it") from error


@contextlib.contextmanager
def show_left(run: Run) -> Iterator[None]:
    """Tell at every epoch and stage of a planned run how long it still takes; note it in the plan.

    It is told and noted again where the run stops in time.
    """
    if rank() != 0 or not run.plan.exists():
        yield
        return
    with progress.announce_with_bars(lambda: _note_left(run)):
        try:
            yield
        except OutOfTime:
            progress.announce(_note_left(run))
            raise


def _note_left(run: Run) -> str:
    left = estimate_left(run)
    # A full disk is reported by what cannot do without it.
    with contextlib.suppress(OSError), change_tables(run):
        write_json(run.plan, {**read_document(run.plan), "left_seconds": round(left, 1)})
    return f"about {progress.format_duration(left)} left of the run"
