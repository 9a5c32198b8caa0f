"""A run whose data lie somewhere else now: the same files, by their names and sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from kit.files import measure_file, write_json
from kit.progress import log
from kit.runs.directory import FILES, Run, read_config
from kit.runs.tables import read_slices, write_frame
from kit.slices.competition_files import find_competition


def note_files(run: Run, slices: pd.DataFrame) -> None:
    """Note in `config.json` which files, by names and sizes, are those of the slice table."""
    write_json(run.config, {**read_config(run), FILES: _hash_files(slices["path"])})


def follow_data(run: Run, data: Path) -> None:
    """Let a run go on with the competition in `data` if its files are those it was begun with.

    The slice table and `config.json` then have the new places, and this is said. Otherwise the run
    stays as it is.
    """
    config = read_config(run) if run.slices.exists() else {}
    if FILES not in config or config["data"] == str(data):
        return
    files, slices = find_competition(data), read_slices(run)
    places = {Path(path).name: path for path in files.train + files.test}
    paths = slices["path"].map(lambda path: places.get(Path(path).name, ""))
    if (paths == "").any() or _hash_files(paths) != config[FILES]:
        return
    write_frame(run.slices, slices.assign(path=paths))
    write_json(run.config, {**config, "data": str(data)})
    log.info(
        f"kit: the data of {run} lie in {data} now, no longer in {config['data']}; names and sizes "
        "of the files are the same"
    )


def _hash_files(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{Path(path).name}\0{measure_file(path)}\n".encode())
    return digest.hexdigest()
