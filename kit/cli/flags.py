"""A recipe on the command line: `--recipe NAME`, and a flag for every field of it."""

from __future__ import annotations

import argparse
import json

from kit.recipes import RECIPES, Recipe, find_recipe, name_fields


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`--recipe NAME`, and a flag for every field of a recipe."""
    # Forty flags in the usage would hide the three that matter.
    parser.usage = f"{parser.prog} DATA --recipe NAME --run RUN [options] [fields of the recipe]"
    parser.add_argument("--recipe", required=True, choices=list(RECIPES), help="what to train")
    group = parser.add_argument_group("fields of the recipe", "each changes one field of it")
    for name, (kind, text) in name_fields().items():
        flag = "--" + name.replace(".", "-").replace("_", "-")
        if kind is bool:
            group.add_argument(
                flag,
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=text,
            )
        else:
            group.add_argument(
                *(["--weights", flag] if name == "classifier.weights" else [flag]),
                dest=name,
                type=_PARSERS.get(str(kind), kind),
                default=argparse.SUPPRESS,
                metavar=name.rpartition(".")[2].upper(),
                help=text,
            )


def _parse_options(text: str) -> dict:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return options


def _parse_folds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",") if number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas") from error


_PARSERS = {str(dict): _parse_options, str(tuple[int, ...]): _parse_folds}


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe asked for, with the fields changed whose flags were given."""
    changes = {name: getattr(options, name) for name in name_fields() if hasattr(options, name)}
    return find_recipe(options.recipe, changes)
