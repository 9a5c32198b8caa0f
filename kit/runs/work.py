"""The hidden folder beside an output that keeps unfinished work until the output is written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from kit import InputError
from kit.files import refuse_existing, write_json
from kit.runs.directory import RunError, is_first, lock_folder, read_document

_SOURCE = "source.json"  # from which files the work was made; it also marks the folder as kit's


def check_name(out: Path, overwrite: bool = True) -> None:
    """Raise `InputError` where `out` is not the name of a CSV, or a file that is there is to stay.

    That is `out`, or one of those beside it. What an unfinished call left with its work does not
    stay, if `open_work` finds that this call goes on with it.
    """
    if out.suffix != ".csv":
        raise InputError(
            f"{out}: the table's name must end in .csv; the other files are written beside it"
        )
    if not overwrite and not out.with_name(_name_work(out)).exists():
        _refuse_written(out)


def _refuse_written(out: Path) -> None:
    """Raise `InputError` where a file is there that a call for `out` writes."""
    for path in _list_own(out):
        refuse_existing(path, overwrite=False)


def leave_own(paths: list[str], scans: Path, out: Path) -> list[str]:
    """The files below `scans` that no call for `out` wrote: it may lie among them."""
    place = os.path.relpath(os.path.realpath(out.parent), os.path.realpath(scans))
    folder = Path(os.path.normpath(scans / place))
    own = {str(path) for path in _list_own(folder / out.name)}
    work = f"{folder / _name_work(out)}{os.sep}"
    return [path for path in paths if path not in own and not path.startswith(work)]


def _list_own(out: Path) -> list[Path]:
    endings = (".csv", ".skipped.csv", ".series.csv", ".json", ".html")
    return [out.with_name(f"{out.stem}{ending}") for ending in endings]


def _name_work(out: Path) -> str:
    return f".{out.stem}.kit-work"


@contextlib.contextmanager
def keep_work(out: Path) -> Iterator[Path]:
    """Yield the hidden folder beside `out` for unfinished work, locked; remove it in the end.

    After an error it stays. Raises `RunError` where another process is at work for `out`, or where
    the folder was not made by kit.
    """
    work = out.with_name(_name_work(out))
    if not is_first():
        yield work
        return
    found = {path.name for path in work.iterdir()} if work.is_dir() else set()
    if found - {".lock", f"{_SOURCE}.part"} and _SOURCE not in found:
        raise RunError(f"{work}: not a folder of kit predict; move it away, or name another output")
    work.mkdir(parents=True, exist_ok=True)
    with lock_folder(work):
        yield work
        _empty_work(work)
        shutil.rmtree(work, ignore_errors=True)  # Windows keeps the lock, which is open


def open_work(work: Path, source: dict, kept: Path | None = None) -> bool:
    """Tell whether an earlier call on the same `source` left `work`; otherwise empty it.

    Raises `InputError` where it did not, and the call would replace a table `kept`.
    """
    note = work / _SOURCE
    if note.exists() and read_document(note) == source:
        return True
    if kept is not None:
        _refuse_written(kept)
    _empty_work(work)
    write_json(note, source)
    return False


def _empty_work(work: Path) -> None:
    """Remove all but the lock and the note that marks the folder as kit's, in case this fails."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (".lock", _SOURCE):
            path.unlink()
