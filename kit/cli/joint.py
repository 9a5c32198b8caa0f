"""The command that trains classifier and LSTM as one network."""

from __future__ import annotations

import argparse

from kit.cli.flags import add_option
from kit.cli.registry import (
    HOURS,
    RUN,
    WORKERS,
    Commands,
    Result,
    argument,
    parse_run,
    require_runs,
)
from kit.cli.stages import CACHE, FOLD, choose_folds, list_folders
from kit.cli.work import set_deadline

COMMANDS = Commands()

_HELP = """\
Begins with the classifier and the LSTM of every fold of RUN, their last epochs, and trains both on
whole series: the LSTM's gradient reaches the classifier, and the LSTM sees augmented slices. Then
embeds, predicts and scores. OUT is a run as any other, so that these show what it was worth:
kit report RUN OUT, kit ensemble RUN OUT --out submission.csv, kit predict SCANS --run OUT.
--freeze-classifier trains the LSTM alone, in less time and memory. With --hours it stops in time;
the same command continues.
"""


def _add_options(parser: argparse.ArgumentParser) -> None:
    from kit.recipes import list_options
    from kit.training.config import JointConfig

    parser.usage = f"{parser.prog} RUN --out OUT [options] [options of the joint training]"
    parser.description = _HELP
    group = parser.add_argument_group("options of the joint training")
    usual = JointConfig()
    for name, (kind, text) in list_options(JointConfig).items():
        of_run = name in ("opt_level", "precision")
        shown = "the classifier's" if of_run else getattr(usual, name)
        add_option(group, name, kind, text, default=shown)


@COMMANDS.add(
    "train-joint",
    "train classifier and LSTM of a run as one network, into a new run",
    RUN,
    argument("--out", type=parse_run, required=True, help="the new run directory"),
    FOLD,
    HOURS,
    WORKERS,
    CACHE,
    _add_options,
)
def train_joint(options: argparse.Namespace) -> Result:
    from kit.recipes import list_options
    from kit.runs.directory import read_recipe
    from kit.training.config import JointConfig

    require_runs(options.run)
    recipe, folds = read_recipe(options.run), choose_folds(options)
    given = {name: getattr(options, name) for name in list_options(JointConfig)
             if hasattr(options, name)}  # fmt: skip
    JointConfig(**given)  # a mistake is told before torch is loaded

    from kit import pipeline
    from kit.cli.tables import format_scores
    from kit.processes import limit_threads
    from kit.runs.joint import find_options
    from kit.runs.scoring import read_metrics
    from kit.training.distributed import join_processes
    from kit.training.image_cache import keep_images

    out, deadline = options.out, set_deadline(options.hours)
    with join_processes(), keep_images(options.cache):
        limit_threads(recipe.classifier.image_size)
        pipeline.train_joint(
            options.run,
            out,
            find_options(recipe, given),
            folds,
            workers=options.workers,
            deadline=deadline,
        )
    if not out.report.exists():
        return list_folders(out, folds, "joint")
    metrics = read_metrics(out)
    files = {"submission": out.submission, "report": out.report}
    written = {name: str(path) for name, path in files.items() if path.exists()}
    return Result(
        "\n".join([format_scores(metrics), "", *written.values()]), {**metrics, **written}
    )
