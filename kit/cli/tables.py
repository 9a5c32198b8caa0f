"""The sentences and tables that commands print, at most 80 columns wide."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kit.competition import LABELS
from kit.ensemble import MODELS
from kit.progress import format_count
from kit.runs.directory import Run, read_recipe
from kit.runs.tables import read_slices

_SHORT = ("epidur", "parench", "ventric", "subarac", "subdur", "any")


def format_scores(metrics: dict) -> str:
    """Out-of-fold log loss per label and weighted, a row a model and fold."""
    scores = metrics["scores"]
    lines = [
        f"Out-of-fold log loss of {metrics['slices']} slices",
        f"{'model':<13}{'fold':>5}"
        + "".join(f"{name:>8}" for name in _SHORT)
        + f"{'weighted':>10}",
    ]
    if not scores:
        lines = ["No slices were held out, so there is no out-of-fold score."]
    for model, folds in scores.items():
        for fold, losses in folds.items():
            values = "".join(f"{losses[label]:>8.4f}" for label in LABELS)
            name = MODELS.get(model, model) if fold == "all" else ""
            lines.append(f"{name:<13}{fold:>5}{values}{losses['weighted']:>10.4f}")
    filled = metrics.get("filled", 0)
    if filled is None:
        lines.append("No submission.csv: the data hold no stage_2_sample_submission.csv.")
    elif filled:
        lines.append(f"{format_count(filled, 'test image')} without a prediction: see filled.csv")
    return "\n".join(lines)


def format_blend(blend: dict) -> str:
    """The scores of the mean of several runs, if they held out the same slices."""
    scores = format_scores(blend) if blend["scores"] else "no score: they held out other slices"
    return f"The mean of the runs:\n{scores}"


def format_stages(run: Run, config: dict, stages: list[tuple[str, str]]) -> str:
    """The state of every output of a run, and the command that continues it."""
    lines = [f"{name:<36} {state}" for name, state in stages]
    left = sum(state != "done" for _, state in stages)
    if not left:
        return "\n".join([*lines, "complete"])
    return "\n".join(
        [
            *lines,
            f"{left} of {len(stages)} stages left; with the same flags this continues:",
            f"kit run {config.get('data', 'DATA')} --recipe {config['recipe']['name']} --run {run}",
        ]
    )


def describe_intercepts(run: Run) -> str:
    """How many files have a wrong rescale intercept, and what the recipe does with them."""
    count = int(read_slices(run)["repaired"].sum())
    ending = "corrected" if read_recipe(run).classifier.repair else "left as they are"
    return f"files with a wrong rescale intercept: {count}, {ending}"


def describe_prediction(out: Path, table: pd.DataFrame, skipped: int) -> str:
    """What `kit predict` wrote to `out`: slices, corrected and skipped files."""
    corrected = int(table["repaired"].sum())
    middle = f"{format_count(corrected, 'wrong intercept')} corrected, " if corrected else ""
    return (
        f"{out}: {format_count(len(table), 'slice')} in {table['series'].nunique()} series, "
        f"{middle}{format_count(skipped, 'file')} skipped. Not a medical device."
    )
