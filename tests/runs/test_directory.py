"""A run's configuration and its lock."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, SMALL, copy_run

from kit import pipeline
from kit.pipeline import run_recipe
from kit.recipes import find_recipe
from kit.runs.directory import Run, RunError, begin_run, lock_run, read_config


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


def test_the_run_one_level_off_is_suggested(tmp_path):
    run = Run(tmp_path / "runs" / "a")
    begin_run(run, find_recipe("demo"), tmp_path)
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "config.json").write_text("{}")  # not of a run
    for wrong in (run.path.parent, run.path / "fold0"):
        with pytest.raises(RunError, match=rf"{wrong}: there is no run here \(is it {run}\?\)"):
            read_config(Run(wrong))
    for wrong in (tmp_path, tmp_path / "runs" / "c", tmp_path / "runs" / "b" / "d"):
        with pytest.raises(RunError, match=r"no run here \(kit run or kit index begins one; kit"):
            read_config(Run(wrong))


def test_a_run_whose_recipe_lacks_a_newer_option_goes_on(tmp_path):
    run, recipe = Run(tmp_path / "run"), find_recipe("demo", SMALL)
    begin_run(run, recipe, tmp_path)
    config = json.loads(run.config.read_text())
    del config["recipe"]["lstm"]["embedding_dropout"]
    config["recipe"]["lstm"]["embedding_size"] = 2048
    recipe = replace(recipe, lstm=replace(recipe.lstm, embedding_dropout=0.0))
    run.config.write_text(json.dumps(config))
    (run.path / "fold0").mkdir()
    begin_run(run, recipe, tmp_path)


def test_nothing_heavy_is_imported_to_read_a_configuration():
    code = "import sys, kit.runs.directory, kit.recipes\n"
    code += "print(sorted({'torch', 'pandas', 'numpy', 'timm'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "[]\n"
