"""The commands that make a run: the synthetic competition, the stages, the run's pages."""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

from kit import InputError
from kit.cli import flags
from kit.cli.registry import (
    DATA,
    HOURS,
    OVERWRITE,
    RUN,
    RUN_FLAG,
    WORKERS,
    Commands,
    Result,
    argument,
    parse_run,
    require_runs,
)
from kit.cli.work import begin_work, read_new, set_deadline, work_on
from kit.files import refuse_existing
from kit.progress import format_count

COMMANDS = Commands()


def _add_planned_recipe(parser: argparse.ArgumentParser) -> None:
    flags.add_recipe(parser, "--hours H")


def _parse_pair(text: str) -> tuple[Path, Path]:
    npz, _, csv = text.partition(",")
    if not csv:
        raise argparse.ArgumentTypeError(f"{text!r} is not NPZ,CSV")
    return Path(npz), Path(csv)


_FOLD_TABLE = argument(
    "--fold-table", type=Path, help="CSV with columns PatientID and fold that replaces our split"
)
_MIX = "mix the LSTMs with the classifiers, label by label, as slices held out fit best"
_NEW_RUN = (DATA, RUN_FLAG, _FOLD_TABLE, WORKERS, flags.add_recipe)
FOLD = argument("--fold", help="one fold: a number, or all (default: every fold of the recipe)")
CACHE = argument(
    "--cache",
    type=Path,
    help="a folder: keep the images that the classifier reads, as JPEG, for slow storage",
)


@COMMANDS.add(
    "phantom",
    "write a synthetic competition to try everything on",
    argument("directory", type=Path, help="a new folder"),
    argument("--patients", type=int, default=300, help="number of patients; a sixth are for test"),
    argument("--size", type=int, default=512, help="side of the images in pixels"),
    argument("--seed", type=int, default=0, help="the same seed gives the same bytes"),
)
def write_phantom(options: argparse.Namespace) -> Result:
    from kit.phantom.write import write_phantom

    write_phantom(options.directory, options.patients, options.size, options.seed)
    return Result(
        f"{options.directory}: a synthetic competition of {options.patients} patients",
        {"directory": str(options.directory), "patients": options.patients},
    )


@COMMANDS.add(
    "plan",
    "measure this machine: hours, gigabytes, what fits a session",
    DATA,
    WORKERS,
    argument("--hours", type=float, default=12, help="length of a session"),
    _add_planned_recipe,
)
def plan_run(options: argparse.Namespace) -> Result:
    recipe = read_new(options)

    from kit.cli.flags import asks_for_size
    from kit.cli.tables import format_plan
    from kit.processes import limit_threads
    from kit.runs.plan import describe_plan, find_machine, make_plan

    limit_threads(recipe.classifier.image_size)
    machine, auto = find_machine(options.workers), asks_for_size(options)
    plan = make_plan(options.data, recipe, options.hours, machine, auto)
    description = describe_plan(plan, options.hours)
    return Result(format_plan(description), description)


@COMMANDS.add("run", "run all stages: from data to submission and report", *_NEW_RUN, HOURS, CACHE)
def run_all(options: argparse.Namespace) -> Result:
    recipe = read_new(options)

    from kit import pipeline
    from kit.cli.tables import describe_intercepts, format_scores
    from kit.runs.scoring import read_metrics
    from kit.training.image_cache import keep_images

    run, deadline = options.run, set_deadline(options.hours)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    with begin_work(options, recipe, processes) as recipe, keep_images(options.cache):
        pipeline.run_recipe(
            options.data,
            recipe,
            run,
            workers=options.workers,
            fold_table=options.fold_table,
            deadline=deadline,
        )
    metrics = read_metrics(run)
    files = {"submission": run.submission, "report": run.report}
    written = {name: str(path) for name, path in files.items() if path.exists()}
    lines = [format_scores(metrics), describe_intercepts(run), "", *written.values()]
    return Result("\n".join(lines), {**metrics, **written})


@COMMANDS.add(
    "index",
    "stage 1: table of slices with labels and folds",
    *_NEW_RUN,
    argument("--hours", type=float, help="length of a session: note in the run what it will take"),
)
def index(options: argparse.Namespace) -> Result:
    recipe = read_new(options)

    from kit import pipeline
    from kit.cli.tables import describe_intercepts

    run = options.run
    with begin_work(options, recipe) as recipe:
        slices = pipeline.index(
            options.data, recipe, run, workers=options.workers, fold_table=options.fold_table
        )
    series, count = slices["series"].nunique(), format_count(len(slices), "slice")
    return Result(
        f"{run}: {count} in {series} series\n{describe_intercepts(run)}",
        {
            "run": str(run),
            "slices": len(slices),
            "series": series,
            "wrong_intercepts": int(slices["repaired"].sum()),
        },
    )


@COMMANDS.add(
    "train-classifier", "stage 2: train the slice classifier", RUN, FOLD, HOURS, WORKERS, CACHE
)
def train_classifier(options: argparse.Namespace) -> Result:
    require_runs(options.run)

    from kit.training.image_cache import keep_images

    with keep_images(options.cache):
        return _run_stage("train-classifier", options, workers=options.workers)


@COMMANDS.add("embed", "stage 3: embed every slice", RUN, FOLD, HOURS, WORKERS)
def embed(options: argparse.Namespace) -> Result:
    return _run_stage("embed", options, workers=options.workers)


@COMMANDS.add(
    "import-embeddings",
    "instead of stages 2 and 3: published .npz files",
    RUN,
    argument("--fold", required=True, help="the fold for which the embeddings were made"),
    argument("files", nargs="+", type=_parse_pair, help="emb_trn.npz,ids_trn.csv and so on"),
)
def import_published(options: argparse.Namespace) -> Result:
    require_runs(options.run)
    for path in itertools.chain(*options.files):
        path.stat()  # before torch is loaded

    from kit.runs.imported import import_embeddings

    fold = int(options.fold) if options.fold.isdecimal() else options.fold
    with work_on(options.run):
        stores = import_embeddings(options.run, fold, options.files)
    rows = stores.to_dict("records")
    text = "\n".join(f"{row['path']}: {format_count(row['slices'], 'slice')}" for row in rows)
    return Result(text, {"stores": rows})


@COMMANDS.add(
    "train-lstm",
    "stage 4: train the LSTM on the embeddings",
    RUN,
    FOLD,
    argument("--epoch", type=int, help="one classifier epoch, on whose embeddings to train"),
    HOURS,
)
def train_lstm(options: argparse.Namespace) -> Result:
    folds = choose_folds(options)

    from kit.runs.lstms import fit_lstms

    with work_on(options.run, lock=False):
        epochs = None if options.epoch is None else [options.epoch]
        fit_lstms(options.run, folds, epochs, set_deadline(options.hours))
    return list_folders(options.run, folds, "lstm")


@COMMANDS.add(
    "ensemble",
    "stage 5: average, score, write submission.csv",
    argument("run", type=parse_run, nargs="+", help="a run directory, or several"),
    argument("--out", type=Path, help="for several runs: the submission with their mean"),
    OVERWRITE,
    argument("--mix-classifier", action=argparse.BooleanOptionalAction, help=_MIX),
)
def ensemble(options: argparse.Namespace) -> Result:
    if len(options.run) > 1 and options.out is None:
        raise InputError("several runs need --out, the submission to write")
    require_runs(*options.run)
    if options.out is not None:
        refuse_existing(options.out, options.overwrite)

    from kit.cli.tables import format_blend, format_scores
    from kit.runs.scoring import blend_runs, combine

    scores = {}
    for run in options.run:
        with work_on(run):
            scores[str(run)] = combine(run, options.mix_classifier)
    tables = [format_scores(metrics) for metrics in scores.values()]
    if options.out is None:
        return Result(tables[0], scores[str(options.run[0])])
    blend = blend_runs(options.run, options.out)
    return Result(
        "\n".join([*tables, format_blend(blend), str(options.out)]),
        {"runs": scores, "blend": blend, "out": str(options.out)},
    )


@COMMANDS.add(
    "report",
    "stage 6: write the page that shows a run, or compares it with others",
    RUN,
    argument("others", type=parse_run, nargs="*", metavar="OTHER", help="a run to compare it with"),
    argument("--series", action="append", default=[], help="also show this series; repeatable"),
)
def report(options: argparse.Namespace) -> Result:
    require_runs(options.run, *options.others)

    from kit import pipeline

    with work_on(options.run):
        pipeline.report(options.run, tuple(options.series), tuple(options.others))
    return Result(str(options.run.report), {"report": str(options.run.report)})


@COMMANDS.add("status", "show which outputs of a run are done", RUN)
def show_status(options: argparse.Namespace) -> Result:
    require_runs(options.run)

    from kit.cli.tables import format_stages
    from kit.pipeline import list_stages

    stages = list_stages(options.run)
    return Result(format_stages(options.run, stages), dict(stages))


def _run_stage(name: str, options: argparse.Namespace, **arguments: Any) -> Result:
    """Run a stage for the fold asked for, or for every fold; tell where each has written."""
    run, folds = options.run, choose_folds(options)

    from kit.pipeline import STAGES

    stage = STAGES[name]
    with work_on(run, lock=False):
        deadline = set_deadline(options.hours)
        for fold in folds:
            stage.execute(run, fold, deadline=deadline, **arguments)
    return list_folders(run, folds, stage.folder)


def choose_folds(options: argparse.Namespace) -> list[int | str]:
    """The fold asked for, or every fold of the run."""
    from kit.runs.directory import list_folds, read_recipe

    folds = list_folds(read_recipe(options.run))
    chosen = [fold for fold in folds if options.fold in (None, str(fold))]
    if not chosen:
        raise InputError(f"--fold {options.fold}: the run has {', '.join(map(str, folds))}")
    return chosen


def list_folders(run: Any, folds: list[int | str], folder: str) -> Result:
    """Tell where a stage has written."""
    paths = [str(run.path / f"fold{fold}" / folder) for fold in folds]
    return Result("\n".join(paths), {"folders": paths})
