"""Flags that several commands share, and a recipe as flags: one for each of its options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kit.recipes import RECIPES, Recipe, find_recipe, list_options, name_flag

_SIZE, _AUTO = "classifier.image_size", "auto"


def add_recipe(parser: argparse.ArgumentParser, own: str = "--run RUN") -> None:
    """Add `--recipe NAME`, and a flag for every option of a recipe; `own` is in the usage line."""
    # Forty flags in the usage line would hide the three that matter.
    parser.usage = f"{parser.prog} DATA --recipe NAME {own} [options] [options of the recipe]"
    parser.add_argument("--recipe", required=True, choices=list(RECIPES), help="what to train")
    group = parser.add_argument_group("options of the recipe", "each replaces one of its values")
    for name, (kind, text) in list_options().items():
        flags = ["--weights"] if name == "classifier.weights" else []
        if name == _SIZE:
            text, kind = f"{text}; auto: the largest that ends in --hours", _parse_size
        add_option(group, name, kind, text, flags)


def add_option(
    group: Any, name: str, kind: Any, text: str, others: Sequence[str] = (), default: Any = None
) -> None:
    """Add an option, named as by `list_options`, as a flag; `default` is shown with its help."""
    flags = [*others, name_flag(name)]
    text = text if default is None or default is False else f"{text} (default: {default})"
    how: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, **how)
    else:
        metavar = "SIZE" if name == _SIZE else name.rpartition(".")[2].upper()
        group.add_argument(*flags, type=_PARSERS.get(kind, kind), metavar=metavar, **how)


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of the command line, with the options changed whose flags are given.

    An image size that is to be chosen (`asks_for_size`) is the recipe's own for now.
    """
    changes = {name: getattr(options, name) for name in list_options() if hasattr(options, name)}
    if asks_for_size(options):
        del changes[_SIZE]
    return find_recipe(options.recipe, changes)


def asks_for_size(options: argparse.Namespace) -> bool:
    """Whether the command line has `--classifier-image-size auto`."""
    return getattr(options, _SIZE, None) == _AUTO


def _parse_size(text: str) -> int | str:
    if text == _AUTO:
        return _AUTO
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither pixels nor auto") from error


def _parse_json(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return options


def _parse_list(text: str, parse: Callable[[str], Any]) -> tuple:
    try:
        return tuple(parse(entry) for entry in text.split(",") if entry)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas") from error


def _parse_window(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(":")))


_PARSERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    dict: _parse_json,
    tuple[int, ...]: partial(_parse_list, parse=int),
    tuple[float, ...]: partial(_parse_list, parse=float),
    tuple[tuple[int, ...], ...]: partial(_parse_list, parse=_parse_window),
}
