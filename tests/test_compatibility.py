"""Runs that version 0.1.0 made are read, continued and predicted with."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import kit
from kit.competition import LABELS
from kit.files import hash_file
from kit.phantom import write_phantom
from kit.pipeline import run_recipe
from kit.runs.directory import Run, read_recipe
from kit.training import amp


@pytest.fixture
def old(tmp_path) -> Path:
    """What 0.1.0 wrote, with the phantom of its making: the runs `whole` and `part`."""
    write_phantom(tmp_path / "data", patients=12, size=64, seed=5)
    with zipfile.ZipFile(ROOT / "tests" / "golden" / "run-0.1.0.zip") as archive:
        archive.extractall(tmp_path)
    here = f"{tmp_path}/data"  # the runs bear the place of their data, which was another
    for config in tmp_path.glob("*/config.json"):
        config.write_text(config.read_text().replace('"data": "data"', f'"data": "{here}"'))
    for table in tmp_path.glob("*/*.parquet"):
        frame = pd.read_parquet(table)
        if "path" in frame:
            frame["path"] = frame["path"].str.replace("data/", f"{here}/", n=1)
            frame.to_parquet(table)
    return tmp_path


def test_a_run_of_0_1_0_predicts_what_it_predicted(old, monkeypatch):
    # It predicted in float32, on a CPU without bfloat16 products.
    monkeypatch.setattr(amp, "choose_convolution_level", lambda device, opt_level: "O0")
    expected = pd.read_csv(old / "predictions.csv").set_index("SOPInstanceUID")
    found = kit.predict(old / "data" / "stage_2_test", old / "whole").set_index("SOPInstanceUID")
    assert found.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(found[list(LABELS)], expected[list(LABELS)], atol=1e-4)


def test_a_finished_run_of_0_1_0_is_taken_as_finished(old):
    run = Run(old / "whole")
    weights = {path: hash_file(path) for path in run.path.rglob("*.safetensors")}
    run_recipe(old / "data", read_recipe(run), run, workers=1)
    assert {path: hash_file(path) for path in run.path.rglob("*.safetensors")} == weights
    assert run.report.exists()


def test_a_run_that_0_1_0_broke_off_is_continued(old):
    run = Run(old / "part")
    run_recipe(old / "data", read_recipe(run), run, workers=1)
    for fold in (0, 1):
        found, expected = (
            json.loads((Run(old / name).classifier(fold) / "history.json").read_text())
            for name in ("part", "whole")
        )
        losses = [[epoch["loss"] for epoch in history] for history in (found, expected)]
        # Its first step was done by 0.1.0: an epoch of two steps that began anew would differ.
        np.testing.assert_allclose(*losses, rtol=0.02)
