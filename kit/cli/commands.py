"""The command line: `kit COMMAND`. No logic; every command calls a function of another room."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import kit

DESCRIPTION = """\
Intracranial hemorrhage on head CT, slice by slice: the 2nd-place solution of
the RSNA competition (2019) as a tool. Not a medical device.

Try it:      kit phantom demo/data --patients 240 --size 64
             kit run demo/data --recipe demo --run demo/run
Your scans:  kit predict SCANS --run demo/run --out predictions.csv
Kaggle:      kit submit demo/run/submission.csv --message "first try" --dry-run
"""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells a default where there is one."""

    def _get_help_string(self, action):
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing else super()._get_help_string(action)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a plain error, 2 a wrong call, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(arguments)
    options = parser.parse_args(arguments)
    if not hasattr(options, "execute"):
        parser.print_help()
        return 2
    try:
        # Whatever is said on the way to a JSON document would spoil it.
        with redirect_stdout(sys.stderr if options.json else sys.stdout):
            text, value = options.execute(options) or ("", {})
        speaks = os.environ.get("RANK", "0") == "0"  # one of `torchrun`'s processes for all
        if speaks and (options.json or text):
            print(json.dumps(value) if options.json else text)
        return 0
    except KeyboardInterrupt:
        print("kit: interrupted; the same command goes on from what is saved", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError) as error:
        named = isinstance(error, OSError) and error.filename is not None and error.strerror
        text = f"{error.filename}: {error.strerror}" if named else error
        print(f"kit: {text}", file=sys.stderr)
        return 1


def make_parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser; only the chosen command's own flags are built, for some need torch."""
    parser = argparse.ArgumentParser(
        prog="kit", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"kit {kit.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, (add_arguments, execute, text) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=_Formatter,
        )
        command.set_defaults(execute=execute)
        if name == chosen:
            add_arguments(command)
            command.add_argument("--quiet", action="store_true", help="no progress bars")
            command.add_argument("--json", action="store_true", help="say the result in JSON")
    return parser


def _add_phantom(parser):
    parser.add_argument("directory", type=Path, help="a new folder")
    parser.add_argument("--patients", type=int, default=300, help="a sixth are the test part")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")


def _phantom(options):
    from kit.phantom.write import write_phantom

    _set_quiet(options)
    write_phantom(options.directory, options.patients, options.size, options.seed)
    return (
        f"{options.directory}: a synthetic competition of {options.patients} patients",
        {"directory": str(options.directory), "patients": options.patients},
    )


def _add_index(parser):
    from kit.cli.flags import add_recipe

    parser.add_argument("data", type=Path, help="the competition's folder or zip")
    _add_run_option(parser)
    parser.add_argument("--fold-table", type=Path, help="a CSV of your own: PatientID, fold")
    _add_workers(parser)
    add_recipe(parser)


def _index(options):
    from kit import pipeline
    from kit.cli.flags import read_recipe

    with _at_work(options, new=True):
        slices = pipeline.index(
            options.data,
            read_recipe(options),
            options.run,
            workers=options.workers,
            fold_table=options.fold_table,
        )
    series = slices["series"].nunique()
    return (
        f"{options.run}: {len(slices)} slices in {series} series\n{_tell_repaired(options.run)}",
        {"run": str(options.run), "slices": len(slices), "series": series,
         "wrong_intercepts": int(slices["repaired"].sum())},
    )  # fmt: skip


def _tell_repaired(run) -> str:
    from kit.runs.directory import read_recipe, read_slices

    count = int(read_slices(run)["repaired"].sum())
    ending = "put right" if read_recipe(run).classifier.repair else "left as they are"
    return f"files with a wrong rescale intercept: {count}, {ending}"


def _run(options):
    from kit import pipeline
    from kit.cli.flags import read_recipe
    from kit.cli.tables import format_scores
    from kit.runs.scoring import read_metrics

    with _at_work(options, new=True):
        pipeline.run_recipe(
            options.data,
            read_recipe(options),
            options.run,
            workers=options.workers,
            fold_table=options.fold_table,
            deadline=_deadline(options),
        )
    metrics = read_metrics(options.run)
    files = {"submission": options.run.submission, "report": options.run.report}
    files = {name: str(path) for name, path in files.items() if path.exists()}
    lines = [format_scores(metrics), _tell_repaired(options.run), "", *files.values()]
    return "\n".join(lines), {**metrics, **files}


def _add_full_run(parser):
    _add_index(parser)
    _add_hours(parser)


def _add_stage(parser):
    parser.add_argument("run", type=_parse_run, help="a run directory")
    parser.add_argument("--fold", help="one fold (a number, or all); every fold of the recipe else")
    _add_hours(parser)


def _add_reading_stage(parser):
    _add_stage(parser)
    _add_workers(parser)


def _train_classifier(options):
    from kit import pipeline

    return _for_folds(options, pipeline.fit_classifier, "classifier", workers=options.workers)


def _embed(options):
    from kit import pipeline

    return _for_folds(options, pipeline.embed, "embeddings", workers=options.workers)


def _train_lstm(options):
    from kit import pipeline

    return _for_folds(options, pipeline.fit_lstm, "lstm")


def _add_run(parser):
    parser.add_argument("run", type=_parse_run, help="a run directory")


def _add_ensemble(parser):
    parser.add_argument("run", type=_parse_run, nargs="+", help="a run directory, or several")
    parser.add_argument("--out", type=Path, help="several runs: the submission of their mean")


def _ensemble(options):
    from kit.cli.tables import format_scores
    from kit.runs.scoring import blend_runs, combine

    if len(options.run) > 1 and options.out is None:
        raise ValueError("several runs need --out, the submission to write")
    runs, texts, scores = options.run, [], {}
    for options.run in runs:
        with _at_work(options):
            scores[str(options.run)] = combine(options.run)
            texts.append(format_scores(scores[str(options.run)]))
    if options.out is None:
        return texts[0], scores[str(options.run)]
    blend = blend_runs(runs, options.out)
    mean = format_scores(blend) if blend["scores"] else "no score: they held out other slices"
    texts += ["The mean of the runs:", mean, str(options.out)]
    return "\n".join(texts), {"runs": scores, "blend": blend, "out": str(options.out)}


def _add_import(parser):
    _add_run(parser)
    parser.add_argument("--fold", required=True, help="the fold they were made for")
    parser.add_argument(
        "files", nargs="+", type=_parse_pair, help="emb_trn.npz,ids_trn.csv and so on"
    )


def _import(options):
    from kit.pipeline import import_embeddings

    fold = int(options.fold) if options.fold.isdecimal() else options.fold
    with _at_work(options):
        stores = import_embeddings(options.run, fold, options.files)
    rows = stores.to_dict("records")
    return "\n".join(f"{row['path']}: {row['slices']} slices" for row in rows), {"stores": rows}


def _parse_pair(text: str) -> tuple[Path, Path]:
    npz, _, csv = text.partition(",")
    if not csv:
        raise argparse.ArgumentTypeError(f"{text!r} is not NPZ,CSV")
    return Path(npz), Path(csv)


def _add_report(parser):
    _add_run(parser)
    parser.add_argument(
        "--series", action="append", default=[], help="show this series too; repeatable"
    )


def _report(options):
    from kit import pipeline

    with _at_work(options):
        pipeline.report(options.run, tuple(options.series))
    return str(options.run.report), {"report": str(options.run.report)}


def _status(options):
    from kit.runs.status import format_stages, list_stages

    return format_stages(options.run), dict(list_stages(options.run))


def _add_explain(parser):
    _add_run(parser)
    parser.add_argument("series", help="a series' name, or a part of it that no other has")


def _explain(options):
    from kit.report.explain import explain_series

    _set_quiet(options)
    page = str(explain_series(options.run, options.series))
    return page, {"page": page}


def _add_predict(parser):
    parser.add_argument("folder", type=Path, help="a folder or zip of DICOM files")
    _add_run_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    parser.add_argument("--by", choices=["slice", "series"], default="slice", help="a row each")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="the probability from which --by series counts a slice",
    )
    parser.add_argument("--report", action="store_true", help="a page with Grad-CAM beside it")
    parser.add_argument("--pseudonymize", action="store_true", help="numbers for PatientIDs")
    _add_workers(parser)


def _predict(options):
    from kit.progress import format_count
    from kit.runs import prediction

    _set_quiet(options)
    if not 0 <= options.threshold <= 1:
        raise kit.InputError(f"the threshold {options.threshold:g} is not a probability")
    model, page = prediction.load_model(options.run.path), options.out.with_suffix(".html")
    with prediction.predict_scans(
        options.folder,
        model,
        options.out,
        pseudonymize=options.pseudonymize,
        workers=options.workers,
    ) as found:
        table, skipped = found.table, found.skipped
        prediction.write_predictions(found, options.out, options.by, options.threshold)
        if options.report:  # last: whatever happens to it, the predictions are written
            from kit.report.scans_page import write_scan_report

            weights = list(model.members)[-1]
            write_scan_report(table, page, weights, skipped, options.threshold)
    series, repaired = table["series"].nunique(), int(table["repaired"].sum())
    files = {"table": options.out, "manifest": options.out.with_suffix(".json"),
             "skipped_list": options.out.with_name(f"{options.out.stem}.skipped.csv")}  # fmt: skip
    if options.report:
        files["page"] = page
    mended = f"{format_count(repaired, 'wrong intercept')} put right, " if repaired else ""
    return (
        f"{options.out}: {format_count(len(table), 'slice')} in {series} series, {mended}"
        f"{format_count(len(skipped), 'file')} skipped. Not a medical device.",
        {
            "slices": len(table),
            "series": series,
            "skipped": len(skipped),
            "repaired": repaired,
            **{name: str(path) for name, path in files.items()},
        },
    )


def _add_submit(parser):
    from kit.competition import SLUG

    parser.add_argument("csv", type=Path, help="a submission file")
    parser.add_argument("--message", required=True, help="said beside the submission on Kaggle")
    parser.add_argument("--sample", type=Path, help="the sample submission, whose ids it must have")
    parser.add_argument("--competition", default=SLUG, help="the competition's slug")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds to wait for a score")
    parser.add_argument("--dry-run", action="store_true", help="all that needs no credentials")


def _submit(options):
    from kit.kaggle.submit import submit

    return "", submit(
        options.csv,
        options.message,
        sample=options.sample,
        competition=options.competition,
        timeout=options.timeout,
        dry_run=options.dry_run,
    )


def _add_submissions(parser):
    from kit.competition import SLUG

    parser.add_argument("--competition", default=SLUG, help="the competition's slug")


def _submissions(options):
    from kit.kaggle.ledger import format_submissions, list_submissions

    rows = list_submissions(options.competition)
    return format_submissions(rows), rows


def _add_download(parser):
    from kit.competition import SLUG

    parser.add_argument("directory", type=Path, help="where the files go")
    parser.add_argument("--competition", default=SLUG, help="the competition's slug")
    parser.add_argument("--file", action="append", default=[], help="this file alone; repeatable")


def _download(options):
    from kit.kaggle.download import download_competition

    _set_quiet(options)
    found = download_competition(options.directory, options.competition, options.file)
    paths = [str(path) for path in found]
    return "\n".join(paths), {"files": paths}


def _add_kernels(parser):
    user = os.environ.get("KAGGLE_USER", "")
    parser.add_argument("--user", default=user, help="the owner on Kaggle (or KAGGLE_USER=)")
    parser.add_argument("--run", type=Path, nargs="+", help="finished runs, a fold each or whole")
    parser.add_argument("--fold", type=int, default=0, help="the one the training notebooks train")
    parser.add_argument("--backbone", type=Path, help="initial weights, a .safetensors file")


def _kernels(options):
    from kit.kaggle.build import BUILD, build_kernels

    _set_quiet(options)
    build_kernels(options.user, options.run, options.fold, options.backbone)
    return f"{BUILD}: datasets and notebooks, ready for `kit push-kernels`", {"folder": str(BUILD)}


def _add_push_kernels(parser):
    parser.add_argument(
        "names",
        nargs="*",
        help="of train-classifier, train-lstm, predict; none: predict where weights were built, "
        "else the two others",
    )
    parser.add_argument("--hours", type=float, default=13, help="how long to follow a notebook")


def _push_kernels(options):
    from kit.kaggle.push import push

    _set_quiet(options)
    push(options.names, hours=options.hours)


def _add_run_option(parser):
    parser.add_argument("--run", type=_parse_run, required=True, help="the run directory")


def _add_workers(parser):
    parser.add_argument("--workers", type=int, help="reading processes; else by the cores")


def _add_hours(parser):
    parser.add_argument("--hours", type=float, help="stop in time, saved; call again to go on")


def _parse_run(text: str):
    from kit.runs.directory import Run

    return Run(Path(text))


def _for_folds(options, stage, folder: str, **arguments):
    """Call a stage for the fold asked for, or for every fold; tell where each has written."""
    from kit.runs.directory import list_folds, read_recipe

    with _at_work(options):
        folds = list_folds(read_recipe(options.run))
        if options.fold is not None:
            chosen = [fold for fold in folds if str(fold) == options.fold]
            if not chosen:
                raise ValueError(f"--fold {options.fold}: the run has {', '.join(map(str, folds))}")
            folds = chosen
        deadline = _deadline(options)
        for fold in folds:
            stage(options.run, fold, deadline=deadline, **arguments)
    paths = [str(options.run.path / f"fold{fold}" / folder) for fold in folds]
    return "\n".join(paths), {"folders": paths}


def _deadline(options) -> float | None:
    import time

    return None if options.hours is None else time.monotonic() + options.hours * 3600


def _at_work(options, new: bool = False):
    """The processes joined, the run directory held; with `new` it may have to be made first."""
    from contextlib import ExitStack

    from kit.runs.directory import lock_run
    from kit.training.distributed import join_processes

    _set_quiet(options)
    stack = ExitStack()
    stack.enter_context(lock_run(options.run, new))
    stack.enter_context(join_processes())
    return stack


def _set_quiet(options):
    from kit import progress

    progress.quiet = options.quiet
    progress.show_messages()


COMMANDS = {
    "phantom": (_add_phantom, _phantom, "write a synthetic competition to try everything on"),
    "run": (
        _add_full_run,
        _run,
        "everything: from the competition's data to submission and report",
    ),
    "index": (_add_index, _index, "stage 1: headers to a slice table with labels and folds"),
    "train-classifier": (
        _add_reading_stage,
        _train_classifier,
        "stage 2: train the slice classifier",
    ),
    "embed": (_add_reading_stage, _embed, "stage 3: embed every slice"),
    "import-embeddings": (_add_import, _import, "published .npz files in place of stage 2 and 3"),
    "train-lstm": (_add_stage, _train_lstm, "stage 4: train the LSTM on the embeddings"),
    "ensemble": (_add_ensemble, _ensemble, "stage 5: average, score, write submission.csv"),
    "report": (_add_report, _report, "stage 6: the page that shows a run"),
    "status": (_add_run, _status, "what a run directory has and what is left"),
    "explain": (_add_explain, _explain, "what each neighbour contributes to a slice's answer"),
    "predict": (_add_predict, _predict, "predict the slices of your own scans"),
    "download": (_add_download, _download, "download the competition's files, with resume"),
    "submit": (_add_submit, _submit, "send a submission to Kaggle and wait for its score"),
    "kernels": (_add_kernels, _kernels, "build the Kaggle notebooks and their datasets"),
    "push-kernels": (
        _add_push_kernels,
        _push_kernels,
        "push datasets and notebooks to Kaggle, follow them, fetch their output",
    ),
    "submissions": (_add_submissions, _submissions, "the ledger beside what Kaggle knows"),
}
