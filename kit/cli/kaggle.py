"""The commands that talk to Kaggle: competition files, submissions, notebooks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from kit.cli.registry import Commands, Result, argument, parse_time

COMMANDS = Commands()


def _add_competition(parser: argparse.ArgumentParser) -> None:
    from kit.competition import SLUG

    parser.add_argument("--competition", default=SLUG, help="the slug of the competition")


def _add_user(parser: argparse.ArgumentParser) -> None:
    user = os.environ.get("KAGGLE_USER")
    parser.add_argument("--user", default=user, help="the owner on Kaggle (or KAGGLE_USER=)")


@COMMANDS.add(
    "download",
    "download the competition; continues where it stopped",
    argument("directory", type=Path, help="where the files go"),
    _add_competition,
    argument("--file", action="append", default=[], help="download this file only; repeatable"),
)
def download(options: argparse.Namespace) -> Result:
    from kit.kaggle.download import download_competition

    found = download_competition(options.directory, options.competition, options.file)
    paths = [str(path) for path in found]
    return Result("\n".join(paths), {"files": paths})


@COMMANDS.add(
    "submit",
    "send a submission to Kaggle and wait for its score",
    argument("csv", type=Path, help="a submission file"),
    argument("--message", required=True, help="description shown on Kaggle"),
    argument("--sample", type=Path, help="the sample submission, whose ids it must have"),
    _add_competition,
    argument("--timeout", type=parse_time, default=1800, help="seconds to wait for the score"),
    argument("--dry-run", action="store_true", help="validate only, send nothing"),
    argument("--again", action="store_true", help="send a file that Kaggle rejected once more"),
)
def submit(options: argparse.Namespace) -> Result:
    from kit.kaggle.submit import reopen, submit

    if options.again and not options.dry_run:
        reopen(options.csv, options.competition)
    entry = submit(
        options.csv,
        options.message,
        sample=options.sample,
        competition=options.competition,
        timeout=options.timeout,
        dry_run=options.dry_run,
    )
    return Result("", entry)


@COMMANDS.add(
    "kernels",
    "build the Kaggle notebooks and their datasets",
    _add_user,
    argument("--run", type=Path, nargs="+", help="finished runs, each with other folds"),
    argument("--fold", type=int, default=0, help="the fold that the training notebooks train"),
    argument("--backbone", type=Path, help="initial weights, a .safetensors file"),
    argument("--recipe", default="tonight", help="what the training notebooks train"),
    argument("--synthetic", action="store_true", help="also runs on synthetic data"),
)
def build_notebooks(options: argparse.Namespace) -> Result:
    from kit.kaggle.build import BUILD, build_kernels
    from kit.models.backbones import find_backbone

    built = build_kernels(
        options.user or "",
        options.run,
        options.fold,
        options.backbone,
        options.recipe,
        options.synthetic,
    )
    lines = [
        f"{size / 1e6:9.1f} MB  {name}" if size >= 1e6 else f"{size / 1e3:9.1f} kB  {name}"
        for name, size in built.items()
    ]
    wanted = find_backbone(options.recipe)
    if not options.run and options.backbone is None and wanted:
        lines.append(f"No initial weights: kit fetch {wanted} --out FILE, then BACKBONE=FILE")
    lines.append(f"Next: make push-kernels KAGGLE_USER={options.user}")
    return Result("\n".join(lines), {"folder": str(BUILD), "bytes": built})


@COMMANDS.add(
    "push-kernels",
    "push the notebooks to Kaggle and fetch their output",
    argument(
        "names",
        nargs="*",
        help="any of tonight, train-classifier, train-lstm, predict; default: those built",
    ),
    argument("--random-weights", action="store_true", help="train without initial weights"),
    argument("--hours", type=parse_time, default=13, help="how long to follow a notebook"),
)
def push_notebooks(options: argparse.Namespace) -> None:
    from kit.kaggle.push import push

    push(options.names, hours=options.hours, random_weights=options.random_weights)


@COMMANDS.add("submissions", "compare the ledger with what Kaggle knows", _add_competition)
def list_submissions(options: argparse.Namespace) -> Result:
    from kit.kaggle.ledger import format_submissions, list_submissions

    rows = list_submissions(options.competition)
    return Result(format_submissions(rows), rows)
