"""Data that were moved: the same files are followed, others are refused."""

import json
import logging
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import SMALL

from kit import pipeline
from kit.files import hash_file, open_file
from kit.recipes import find_recipe
from kit.runs.directory import Run, RunError
from kit.runs.tables import read_slices


@pytest.fixture
def begun(small_data, tmp_path):
    """A run that was begun on a copy of the data, which is then renamed, a folder deeper."""
    recipe, run = find_recipe("demo", SMALL), Run(tmp_path / "run")
    shutil.copytree(small_data, tmp_path / "before")
    pipeline.index(tmp_path / "before", recipe, run, workers=1)
    (tmp_path / "now").mkdir()
    (tmp_path / "before").rename(tmp_path / "now" / "rsna")
    return recipe, run, tmp_path / "now"


def test_a_run_goes_on_where_its_data_lie_now_and_says_so(begun, tmp_path, caplog):
    recipe, run, data = begun
    before = read_slices(run)
    with caplog.at_level(logging.INFO, "kit"):
        pipeline.index(data, recipe, run, workers=1)
    said = f"the data of {run} lie in {data} now, no longer in {tmp_path}/before; names and sizes"
    assert said in caplog.text
    slices = read_slices(run)
    expected = before["path"].str.replace(f"{tmp_path}/before", f"{data}/rsna")
    assert slices["path"].tolist() == expected.tolist()
    pd.testing.assert_frame_equal(slices.drop(columns="path"), before.drop(columns="path"))
    assert json.loads(run.config.read_text())["data"] == str(data)
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(data.rglob("*")):
            archive.write(path, path.relative_to(data))
    digest = hash_file(slices["path"].iloc[7])
    shutil.rmtree(data)
    moved = pipeline.index(tmp_path / "data.zip", recipe, run, workers=1)["path"].iloc[7]
    assert moved.startswith(f"{tmp_path}/data.zip/rsna/")
    with open_file(moved):
        assert hash_file(moved) == digest


@pytest.mark.parametrize("how", ["another size", "missing", "nothing was noted"])
def test_other_data_are_refused_and_the_run_stays(how, begun):
    recipe, run, data = begun
    file = next(data.rglob(Path(read_slices(run)["path"].iloc[3]).name))
    if how == "another size":
        file.write_bytes(file.read_bytes() + b"\0")
    elif how == "missing":
        file.unlink()
    else:  # by an earlier version
        config = json.loads(run.config.read_text())
        run.config.write_text(json.dumps({k: config[k] for k in config if k != "files_sha256"}))
    before = hash_file(run.slices), hash_file(run.config)
    with pytest.raises(RunError, match="was begun with data = "):
        pipeline.index(data, recipe, run, workers=1)
    assert (hash_file(run.slices), hash_file(run.config)) == before
