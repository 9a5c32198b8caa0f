"""The commands that apply a trained run: to your own scans, and to the competition's test part."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kit import InputError
from kit.cli.registry import (
    DATA,
    HOURS,
    OVERWRITE,
    RUN_FLAG,
    WORKERS,
    Commands,
    Result,
    argument,
    parse_length,
    parse_run,
    require_data,
    require_runs,
)
from kit.cli.work import set_deadline
from kit.files import refuse_existing

if TYPE_CHECKING:
    from kit.runs.prediction import Predictions

COMMANDS = Commands()


@COMMANDS.add(
    "predict",
    "predict the slices of your own scans",
    argument("folder", type=Path, help="a folder or zip of DICOM files, or of NIfTI images"),
    RUN_FLAG,
    argument("--out", type=Path, required=True, help="the CSV to write"),
    argument(
        "--by",
        choices=["slice", "series", "study"],
        default="slice",
        help="one row per slice, series or study; of a study one series is predicted",
    ),
    argument(
        "--threshold",
        type=float,
        help="lowest probability of a slice that --by series counts and --report prints bold "
        "(default: 0.5)",
    ),
    argument(
        "--calibrated",
        action="store_true",
        help="apply the run's temperatures (kit calibrate RUN) to the table",
    ),
    argument(
        "--slab",
        type=parse_length,
        metavar="MM",
        help="average the slices of thin series to this thickness; 0: none (default: 5 mm, for "
        "slices less than 2 mm apart)",
    ),
    OVERWRITE,
    argument("--report", action="store_true", help="also write a page to read the slices on"),
    argument("--pseudonymize", action="store_true", help="replace PatientIDs by running numbers"),
    argument(
        "--skip-unreadable", action="store_true", help="go on without folders that cannot be listed"
    ),
    WORKERS,
)
def predict(options: argparse.Namespace) -> Result:
    threshold = _check_options(options)

    from kit.processes import limit_threads
    from kit.runs.gathering import gather_files
    from kit.runs.prediction import load_model, predict_gathered, write_predictions

    out, page, model = options.out, options.out.with_suffix(".html"), load_model(options.run.path)
    limit_threads(model.recipe.classifier.image_size)
    gathered = gather_files(
        options.folder, out, options.pseudonymize, options.workers, options.skip_unreadable
    )
    with predict_gathered(
        gathered, model, out, options.workers, options.by, options.slab, options.overwrite
    ) as found:
        write_predictions(found, out, options.by, threshold, options.calibrated)
        if options.report:  # last: if it fails, the predictions are written
            from kit.report.scans_page import write_scan_report

            write_scan_report(found, page, list(model.members)[-1], threshold)
    return _describe(found, out, page if options.report else None, options.calibrated)


def _describe(found: Predictions, out: Path, page: Path | None, calibrated: bool) -> Result:
    from kit.cli.tables import describe_prediction
    from kit.runs.provenance import describe_provenance, read_provenance

    provenance, table = read_provenance(found.model.run), found.table
    files = {
        "table": out,
        "manifest": out.with_suffix(".json"),
        "skipped_list": out.with_name(f"{out.stem}.skipped.csv"),
        "series_table": out.with_name(f"{out.stem}.series.csv"),
        **({"page": page} if page else {}),
    }
    text = describe_prediction(out, table, len(found.skipped), calibrated)
    beside = ", ".join(str(path) for path in files.values() if path != out)
    return Result(
        f"{describe_provenance(provenance)}\n{text}\nBeside it: {beside}",
        {
            "slices": len(table),
            "series": table["series"].nunique(),
            "skipped": len(found.skipped),
            "repaired": int(table["repaired"].sum()),
            "calibrated": calibrated,
            "provenance": provenance,
            **{name: str(path) for name, path in files.items()},
        },
    )


def _check_options(options: argparse.Namespace) -> float:
    """Refuse what cannot be predicted before torch is loaded; return the threshold."""
    from kit.runs.directory import read_recipe
    from kit.runs.work import check_name

    check_name(options.out, options.overwrite)
    require_data(options.folder)
    read_recipe(options.run)
    if options.calibrated:
        from kit.runs.calibration import read_calibration  # no light import

        read_calibration(options.run, options.by)
    if options.threshold is None:
        return 0.5
    if options.by != "series" and not options.report:
        raise InputError("--threshold counts for --by series and for --report alone")
    if not 0 <= options.threshold <= 1:
        raise InputError(f"the threshold {options.threshold:g} is not a probability")
    return options.threshold


@COMMANDS.add(
    "explain",
    "show what each neighbour contributes to a prediction",
    argument(
        "words",
        nargs="+",
        metavar="RUN SERIES",
        help="a run; the name of one of its series, or a part of it that no other name contains",
    ),
    argument("--scans", type=Path, help="the series is one of this folder or zip"),
    argument("--run", type=parse_run, help="the run, with --scans"),
    argument("--out", type=Path, help="the page to write, with --scans (default: explain.html)"),
    OVERWRITE,
)
def explain(options: argparse.Namespace) -> Result:
    words = options.words if options.run is None else [str(options.run), *options.words]
    if len(words) != 2:
        raise InputError("kit explain needs a run and a series: RUN SERIES or --run RUN SERIES")
    run, series = parse_run(words[0]), words[1]
    require_runs(run)
    page = options.out or Path("explain.html")
    if options.scans is not None:
        refuse_existing(page, options.overwrite)
    elif options.out is not None:
        raise InputError("--out is for --scans; the page of a run's series stands in the run")

    from kit.report.explain import explain_scan, explain_series

    if options.scans is None:
        page = explain_series(run, series)
    else:
        page = explain_scan(options.scans, run, series, page)
    return Result(str(page), {"page": str(page)})


@COMMANDS.add(
    "predict-test",
    "predict the test part of the competition",
    DATA,
    RUN_FLAG,
    argument("--out", type=Path, required=True, help="the submission to write"),
    OVERWRITE,
    HOURS,
    WORKERS,
)
def predict_test(options: argparse.Namespace) -> Result:
    from kit.runs.directory import read_recipe

    require_data(options.data)
    recipe = read_recipe(options.run)
    refuse_existing(options.out, options.overwrite)

    from kit.processes import limit_threads
    from kit.runs.competition import predict_competition
    from kit.runs.export import read_prior
    from kit.training.distributed import join_processes

    run, out = options.run, options.out
    limit_threads(recipe.classifier.image_size)
    with join_processes():
        predict_competition(
            options.data,
            run,
            out,
            read_prior(run),
            workers=options.workers,
            deadline=set_deadline(options.hours),
        )
    return Result(str(out), {"submission": str(out)})
