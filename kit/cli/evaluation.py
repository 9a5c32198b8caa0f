"""The commands that hold predictions against labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kit import InputError
from kit.cli.registry import (
    OVERWRITE,
    RUN,
    Commands,
    Result,
    argument,
    parse_run,
    require_runs,
)
from kit.files import open_file, refuse_existing

COMMANDS = Commands()
_MAP = "our names for columns of another's table, as any=P_ICH StudyInstanceUID=scan"


def _parse_mapping(text: str) -> tuple[str, str]:
    name, _, column = text.partition("=")
    if not column:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COLUMN")
    return name, column


def _parse_threshold(text: str) -> tuple[str, float]:
    from kit.competition import LABELS

    label, _, number = text.rpartition("=")
    if label and label not in LABELS:
        raise argparse.ArgumentTypeError(f"{label!r} is none of {', '.join(LABELS)}")
    try:
        return label, float(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no threshold") from error


def _arrange_points(thresholds: list[tuple[str, float]]) -> dict[str, dict[str, float]]:
    """Operating points by name: each threshold for all labels, and those "given" for one label.

    Raises `InputError` where a label has two of one name.
    """
    from kit.competition import LABELS

    points: dict[str, dict[str, float]] = {}
    for label, threshold in thresholds:
        name, labels = ("given", (label,)) if label else (f"{threshold:g}", LABELS)
        point = points.setdefault(name, {})
        if point.keys() & set(labels):
            raise InputError(f"--threshold gives {label or name} twice")
        point.update(dict.fromkeys(labels, threshold))
    return points


def _read_map(flag: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{flag} gives {min(twice)} twice")
    return dict(pairs)


def _add_map(name: str, of: str) -> Any:
    return argument(name, nargs="+", type=_parse_mapping, default=[], help=f"{of}: {_MAP}")


@COMMANDS.add(
    "evaluate",
    "hold predictions against labels: the tables and figures of a paper",
    argument("predictions", type=Path, help="a CSV of kit predict, or another's (see --columns)"),
    argument("labels", type=Path, help="a CSV of labels: 0, 1 or blank"),
    argument("--out", type=Path, required=True, help="the folder for tables, figures and the page"),
    OVERWRITE,
    argument(
        "--preset",
        choices=["rsna", "scan", "cq500", "ct-ich"],
        default="scan",
        help="form of the labels; scan: one row a study, or whatever its ids say",
    ),
    argument(
        "--unit",
        choices=["slice", "series", "study", "patient"],
        help="unit of analysis (default: that of the labels)",
    ),
    _add_map("--columns", "PREDICTIONS"),
    _add_map("--label-columns", "LABELS"),
    argument("--against", type=Path, help="another model's predictions, compared in pairs"),
    _add_map("--against-columns", "the other model"),
    argument(
        "--run",
        type=parse_run,
        help="the run that predicted: its operating points and temperatures, and whom it has seen",
    ),
    argument("--exclude-seen", action="store_true", help="leave out the run's training patients"),
    argument(
        "--threshold",
        nargs="+",
        type=_parse_threshold,
        default=[],
        help="operating point fixed beforehand, as 0.3 or any=0.3 (default without --run: 0.5)",
    ),
    argument(
        "--youden", action="store_true", help="also a threshold chosen on this set: optimistic"
    ),
    argument("--prevalence", type=float, help="PPV and NPV at this prevalence too"),
    argument("--subgroup", nargs="+", default=[], help="columns by which to describe subgroups"),
    argument(
        "--scans-page", type=Path, help="page of kit predict --report (default: beside PREDICTIONS)"
    ),
    argument("--resamples", type=int, default=1000, help="bootstrap resamples of the patients"),
    argument("--seed", type=int, default=0, help="seed of the bootstrap"),
)
def evaluate(options: argparse.Namespace) -> Result:
    for path in (options.predictions, options.labels, options.against, options.scans_page):
        if path is not None:
            open_file(path).close()  # a missing one is told before anything is computed
    if options.run is not None:
        require_runs(options.run)
    refuse_existing(options.out, options.overwrite)

    from kit.evaluation.settings import Settings

    maps = ("columns", "label_columns", "against_columns")
    names = ("predictions", "labels", "preset", "unit", "against", "run", "exclude_seen")
    given: dict[str, Any] = {name: getattr(options, name) for name in names}
    for name in maps:
        given[name] = _read_map(f"--{name.replace('_', '-')}", getattr(options, name))
    settings = Settings(
        _arrange_points(options.threshold),
        youden=options.youden,
        prevalence=options.prevalence,
        subgroups=tuple(options.subgroup),
        resamples=options.resamples,
        seed=options.seed,
    )

    from kit.cli.tables import format_evaluation
    from kit.report.evaluation_page import write_evaluation
    from kit.runs.evaluation import Sources, evaluate_files

    evaluation = evaluate_files(Sources(**given), settings)
    page = options.scans_page or options.predictions.with_suffix(".html")
    written = write_evaluation(evaluation, options.out, page if page.exists() else None)
    return Result(
        f"{format_evaluation(evaluation)}\n{written[0]}",
        {
            "unit": evaluation.cases.unit,
            "cases": len(evaluation.cases.ids),
            "unmatched": len(evaluation.cases.unmatched),
            "files": [str(path) for path in written],
        },
    )


@COMMANDS.add(
    "calibrate", "fix temperatures and operating points on a run's out-of-fold predictions", RUN
)
def calibrate(options: argparse.Namespace) -> Result:
    from kit.cli.tables import format_calibration
    from kit.runs.calibration import calibrate_run
    from kit.runs.directory import lock_run

    with lock_run(options.run):
        document = calibrate_run(options.run)
    return Result(f"{format_calibration(document)}\n{options.run.calibration}", document)
