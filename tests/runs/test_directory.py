"""A run's configuration, its lock, and what its stages cost."""

import json

import pytest
from conftest import SMALL, copy_run

from kit import pipeline
from kit.pipeline import run_recipe
from kit.recipes import find_recipe
from kit.runs.directory import Run, RunError, lock_run


def test_another_recipe_on_the_same_run_is_refused_naming_the_field(small_run, small_data):
    changed = find_recipe("demo", {**SMALL, "lstm.learning_rate": 0.5})
    with pytest.raises(RunError, match=r"begun with recipe.lstm.learning_rate = 0.002, not 0.5"):
        run_recipe(small_data, changed, small_run)


def test_a_second_process_is_refused(small_run):
    refused = pytest.raises(RunError, match="another process is at work")
    with lock_run(small_run), refused, lock_run(small_run):
        pass


def test_a_run_with_models_keeps_its_configuration(small_run, small_data, tmp_path):
    run = copy_run(small_run, tmp_path / "run")
    run.slices.unlink()
    before = run.config.read_bytes()
    with pytest.raises(RunError, match=r"was begun with recipe\.seed = 0, not 5"):
        pipeline.index(small_data, find_recipe("demo", {**SMALL, "seed": 5}), run)
    assert run.config.read_bytes() == before


def test_another_fold_table_is_refused(small_data, tmp_path):
    run, recipe = Run(tmp_path / "run"), find_recipe("demo", SMALL)
    slices = pipeline.index(small_data, recipe, run)
    table = slices.loc[slices["split"] == "train", ["PatientID", "fold"]].drop_duplicates()
    table.to_csv(tmp_path / "folds.csv", index=False)
    with pytest.raises(RunError, match="begun with fold_table_sha256 = None"):
        pipeline.index(small_data, recipe, run, fold_table=tmp_path / "folds.csv")


def test_every_stage_says_what_it_cost(small_run):
    timings = json.loads(small_run.timings.read_text())
    assert {"index", "fold0 classifier", "fold1 embeddings", "fold1 LSTM", "report"} <= set(timings)
    for cost in timings.values():
        assert cost["seconds"] > 0
        assert 0 < cost["processor_seconds"] < 8 * cost["seconds"] + 1
        assert cost["gpu_seconds"] in (0, cost["seconds"])
