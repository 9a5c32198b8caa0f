"""By what a folder or file is known as a release: without torch, so mistakes are told at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kit import InputError


@dataclass(frozen=True)
class Form:
    """What a release looks like, in words, and whether a path is one."""

    description: str
    fits: Callable[[Path], bool]


def list_ianpan(folder: Path) -> tuple[Path, Path]:
    """The two files of the release: classifier, sequence model."""
    return folder / "classifier" / "model.safetensors", folder / "sequence" / "model.safetensors"


FORMS = {
    "ianpan": Form(
        "a folder with classifier/model.safetensors and sequence/model.safetensors",
        lambda path: any(file.is_file() for file in list_ianpan(path)),
    ),
    "appian": Form(
        "a file fold0_ep2.pt, or a folder of those",
        lambda path: path.suffix == ".pt" if path.is_file() else any(path.glob("*.pt")),
    ),
}


def find_form(path: Path, name: str | None = None) -> str:
    """The name of the released form of a folder or file, which `name` may say.

    Raises `InputError` saying what was looked for, and `FileNotFoundError`.
    """
    path.stat()  # a missing path is an OSError that names it
    if name is not None and name not in FORMS:
        raise InputError(f"there is no kind {name!r}; there are {', '.join(FORMS)}")
    wanted = [name] if name else list(FORMS)
    for form in wanted:
        if FORMS[form].fits(path):
            return form
    forms = "; or ".join(FORMS[form].description for form in wanted)
    raise InputError(f"{path}: not a release that kit knows: it would be {forms}")
