"""The commands that bring models which other people trained into the kit's form."""

from __future__ import annotations

import argparse
from pathlib import Path

from kit import InputError
from kit.cli.registry import Commands, Result, argument
from kit.files import refuse_existing
from kit.models.forms import find_form

COMMANDS = Commands()

_OUT = argument("--out", type=Path, metavar="MODEL", help="a new folder: a run directory")
_CLASSIFIER = argument(
    "--classifier-only",
    action="store_true",
    help="without the model over series, to train the kit's own on its embeddings",
)


_PRECISION = argument(
    "--opt-level",
    choices=["O0", "O1"],
    default="O0",
    help="precision: O0 float32 as released, O1 mixed, faster on a GPU",
)


@COMMANDS.add(
    "fetch",
    "download a model that other people trained, or initial weights (resnext101, convnext_small)",
    argument("name", nargs="?", help="a name of --list"),
    _OUT,
    _CLASSIFIER,
    _PRECISION,
    argument("--list", action="store_true", help="list what there is, and its licence"),
)
def fetch(options: argparse.Namespace) -> Result:
    from kit.models.released import list_released

    if options.list:
        entries = list_released()
        return Result("\n\n".join(map(_describe_entry, entries)), entries)
    if not options.name or options.out is None:
        raise InputError("kit fetch needs a NAME and --out MODEL; kit fetch --list lists the names")
    from kit.models.backbones import BACKBONES, fetch_backbone, find_backbone
    from kit.recipes import RECIPES

    if options.name in BACKBONES:
        path = fetch_backbone(options.name, options.out)
        recipe = next(r for r in ("tonight", *RECIPES) if find_backbone(r) == options.name)
        text = f"{path}: ready for\n  make kernels KAGGLE_USER=you RECIPE={recipe} BACKBONE={path}"
        return Result(text, {"file": str(path)})
    from kit.models.fetching import fetch_model

    path = fetch_model(options.name, options.out, options.classifier_only, options.opt_level)
    return _describe_model(path)


@COMMANDS.add(
    "import-model",
    "turn a released model on this disk into a run directory",
    argument("source", type=Path, help="the folder or file as it was released"),
    argument("--out", type=Path, required=True, metavar="MODEL", help="a new folder"),
    argument("--kind", help="ianpan or appian; default: by what is there"),
    _CLASSIFIER,
    _PRECISION,
)
def import_release(options: argparse.Namespace) -> Result:
    options.source.stat()
    refuse_existing(options.out)
    find_form(options.source, options.kind)  # before torch is loaded

    from kit.models.importing import import_model

    run = import_model(
        options.source, options.out, options.kind, options.classifier_only, options.opt_level
    )
    return _describe_model(run.path)


def _describe_entry(entry: dict[str, str]) -> str:
    lines = [f"{name.replace('_', ' '):<11} {value}" for name, value in entry.items()]
    return "\n".join(lines)


def _describe_model(path: Path) -> Result:
    from kit.cli.tables import describe_use
    from kit.runs.directory import Run
    from kit.runs.provenance import describe_provenance, read_provenance

    run = Run(path)
    provenance = read_provenance(run)
    text = f"{describe_provenance(provenance)}\n{path}: ready for\n  {describe_use(run)}"
    return Result(text, {"run": str(path), "provenance": provenance})
