"""The sentences and tables that commands print, at most 80 columns wide."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

import pandas as pd

from kit.competition import LABELS
from kit.ensemble import MODELS
from kit.evaluation.inputs import WHOLE
from kit.evaluation.methods import Evaluation, list_limits
from kit.evaluation.tables import format_cell
from kit.progress import format_count, format_duration
from kit.recipes import format_flags, list_changes
from kit.runs.directory import Run, read_config, read_recipe
from kit.runs.joint import list_given
from kit.runs.metrics import describe_setback
from kit.runs.status import measure_disk
from kit.runs.tables import read_slices


def format_scores(metrics: dict) -> str:
    """Out-of-fold log loss: a column a model; a row a label, weighted, weighted by fold."""
    scores = metrics["scores"]
    lines = ["No slices were held out, so there is no out-of-fold score."]
    if scores:
        folds = [fold for fold in next(iter(scores.values())) if fold != "all"]
        rows = [(name, "all", name) for name in (*LABELS, "weighted")]
        rows += [(f"weighted, fold {fold}", fold, "weighted") for fold in folds]
        heads = "".join(f"{MODELS.get(model, model):>14}" for model in scores)
        lines = [f"Out-of-fold log loss of {format_count(metrics['slices'], 'slice')}"]
        lines.append(f"{'':<20}{heads}")
        for name, fold, key in rows:
            values = "".join(f"{model[fold][key]:>14.4f}" for model in scores.values())
            lines.append(f"{name:<20}{values}")
        lines += textwrap.wrap(describe_setback(*_read_weighted(scores)), 80)
    filled = metrics.get("filled", 0)
    if filled is None:
        lines.append("No submission.csv: the data hold no stage_2_sample_submission.csv.")
    elif filled:
        lines.append(f"{format_count(filled, 'test image')} without a prediction: see filled.csv")
    return "\n".join(lines)


def _read_weighted(scores: dict) -> tuple[float | None, float]:
    """The weighted log loss of the classifier, if it is known, and of the bag."""
    classifier = scores.get("classifier")
    return classifier and classifier["all"]["weighted"], scores["bag"]["all"]["weighted"]


def format_blend(blend: dict) -> str:
    """The scores of the mean of several runs, if they held out the same slices."""
    scores = format_scores(blend) if blend["scores"] else "no score: they held out other slices"
    return f"The mean of the runs:\n{scores}"


def format_stages(run: Run, stages: list[tuple[str, str]]) -> str:
    """The state of every output of a run, and the command that continues it.

    Of a model that was imported or exported, for which no stage ran here, the command that uses it.
    """
    config, recipe = read_config(run), read_recipe(run)
    if "data" not in config:
        return f"{run}: a model, not a run with stages; ready for\n  {describe_use(run)}"
    lines = [f"{name:<36} {state}" for name, state in stages]
    sizes = measure_disk(run)
    scale, unit = (1e9, "GB") if sum(sizes.values()) >= 1e9 else (1e6, "MB")
    parts = ", ".join(f"{name} {size / scale:.2f}" for name, size in sizes.items())
    lines.append(f"on the disk: {sum(sizes.values()) / scale:.2f} {unit} ({parts})")
    left = sum(not state.startswith("done") for _, state in stages)
    if not left:
        return "\n".join([*lines, "complete"])
    words = ["kit", "run", config["data"], "--recipe", recipe.name, "--run", str(run)]
    words += format_flags(list_changes(recipe))
    if "fold_table_sha256" in config:
        words += ["--fold-table", "FOLDS.csv"]  # the run knows its hash alone
    if "joint" in config:
        words = ["kit", "train-joint", config["joint"]["run"], "--out", str(run)]
        words += format_flags(list_given(run))
    left_over = f"{left} of {format_count(len(stages), 'output')} left; this continues:"
    return "\n".join([*lines, left_over, shlex.join(words)])


def describe_use(run: Run) -> str:
    """The command that uses an imported or exported model."""
    if read_config(run).get("provenance", {}).get("complete", True):
        return shlex.join(
            ["kit", "predict", "SCANS", "--run", str(run), "--out", "predictions.csv"]
        )
    following = ["kit", "run", "DATA", "--recipe", "single", "--run", str(run)]
    return f"{shlex.join(following)}   (trains the LSTM)"


def format_plan(plan: dict) -> str:
    """What a run will take, as `runs.plan.describe_plan` gives it."""
    machine, rates, images = plan["machine"], plan["rates"], plan["images"]
    devices, size, hours = machine["devices"], rates["image_size"], plan["session_hours"]
    computes = f"{devices} × {machine['gpu']}" if machine["gpu"] else "no GPU, so on the CPU"
    lines = [
        f"{plan['recipe']['name']} at {size} px on {images['train']:,} training and "
        f"{images['test']:,} test images",
        f"{computes}; {machine['cores']} cores, {machine['workers']} reading",
        "",
        f"{'stage':<24}{'time':>13}{'GPU-hours':>11}{'GB':>9}  waits for",
    ]
    rows = [*plan["stages"], {**plan, "name": "total", "seconds": plan["hours"] * 3600}]
    for row in rows:
        waits = row.get("bottleneck", f"{format_count(plan['sessions'], 'session')} of {hours:g} h")
        spent = f"{format_duration(row['seconds']):>13}{row['gpu_hours']:>11.2f}"
        lines.append(f"{row['name']:<24}{spent}{row['bytes'] / 1e9:>9.2f}  {waits}".rstrip())
    if "peak_bytes" in plan:  # not in those of earlier versions
        most = plan["peak_bytes"] / 1e9
        lines.append(f"At most {most:.2f} GB at a time, with one LSTM in training.")
    lines += [
        "",
        "Measured here, a second: "
        f"{rates['headers']:,.0f} headers; {rates['training_images']:,.0f} images read and",
        f"augmented, {rates['images']:,.0f} read; {rates['trained']:,.1f} trained and "
        f"{rates['embedded']:,.1f} embedded on one device. An LSTM",
        f"step: {rates['lstm_step_seconds'] * 1000:,.0f} ms; readers start in "
        f"{rates['reading_start']:.1f} s. Not measured: that several GPUs",
        "share images evenly, other sizes (by their pixels), compiling, reports.",
        "",
        f"Hours by image size (rows) and classifier epochs; * ends within {hours:g} h",
    ]
    sizes = plan["hours_by_size_and_epochs"]
    lines.append(
        "px   " + "".join(f"{epochs:>9} " for epochs in next(iter(sizes.values()))).rstrip()
    )
    for side, row in sizes.items():
        cells = (f"{value:>9.2f}{'*' if value <= hours else ' '}" for value in row.values())
        lines.append(f"{side:<5}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def describe_intercepts(run: Run) -> str:
    """How many files have a wrong rescale intercept, and what the recipe does with them."""
    count = int(read_slices(run)["repaired"].sum())
    ending = "corrected" if read_recipe(run).classifier.repair else "left as they are"
    return f"files with a wrong rescale intercept: {count}, {ending}"


def describe_prediction(
    out: Path, table: pd.DataFrame, skipped: int, calibrated: bool = False
) -> str:
    """What `kit predict` wrote to `out`: slices, corrected and skipped files."""
    corrected = int(table["repaired"].sum())
    middle = f"{format_count(corrected, 'wrong intercept')} corrected, " if corrected else ""
    return (
        f"{out}: {format_count(len(table), 'slice')} in {table['series'].nunique()} series, "
        f"{middle}{format_count(skipped, 'file')} skipped. "
        f"{'Calibrated by the temperatures of the run. ' * calibrated}Not a medical device."
    )


def format_evaluation(evaluation: Evaluation) -> str:
    """The area of each finding and model, and what a reader has to know before it."""
    table, cases = evaluation.statements, evaluation.cases
    areas = table[(table["section"] == "discrimination") & (table["interval"] == "DeLong")]
    lines = [
        f"{format_count(len(cases.ids), 'case')} by {cases.unit}, "
        f"{format_count(len(cases.unmatched), 'id')} without a match"
    ]
    for _, row in areas.iterrows():
        name = row["finding"] if row["model"] == WHOLE else f"  {row['model']}"
        lines.append(f"{name:<30} AUC {format_cell(row)}")
    return "\n".join([*lines, *list_limits(evaluation), "Not a medical device."])


def format_calibration(document: dict) -> str:
    """The temperature and the thresholds of `any`, by unit."""
    lines = [f"{'any, by':<10}{'n':>8}{'temperature':>13}  operating points"]
    for unit, found in document["units"].items():
        temperature = found["temperatures"]["any"]
        shown = "none" if temperature is None else f"{temperature:.3f}"
        points = ", ".join(
            f"{name} {values['any']:.3f}"
            for name, values in found["points"].items()
            if "any" in values
        )
        lines.append(f"{unit:<10}{found['n']:>8}{shown:>13}  {points}")
    return "\n".join(lines)
