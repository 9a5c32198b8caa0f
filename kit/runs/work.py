"""The hidden folder beside an output that keeps unfinished work until the output is written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kit.files import split_archive, write_json
from kit.runs.directory import RunError, lock_folder, read_document
from kit.training.distributed import rank

_SOURCE = "source.json"  # from which files the work was made; it also marks the folder as kit's


@contextlib.contextmanager
def keep_work(out: Path) -> Iterator[Path]:
    """Yield the hidden folder beside `out` for unfinished work, locked; remove it in the end.

    After an error it stays. Raises `RunError` where another process is at work for `out`, or where
    the folder was not made by kit.
    """
    work = out.with_name(f".{out.stem}.kit-work")
    if rank() != 0:
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


def open_work(work: Path, source: dict) -> bool:
    """Tell whether an earlier call on the same `source` left `work`; otherwise empty it."""
    note = work / _SOURCE
    if note.exists() and read_document(note) == source:
        return True
    _empty_work(work)
    write_json(note, source)
    return False


def hash_states(paths: pd.Series) -> str:
    """Hash the files' names, sizes and times; for a zip's members, those of the zip."""
    digest = hashlib.sha256()
    for path in paths:
        found = os.stat(split_archive(path)[0] or path)
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _empty_work(work: Path) -> None:
    """Remove all but the lock and the note that marks the folder as kit's, in case this fails."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (".lock", _SOURCE):
            path.unlink()
