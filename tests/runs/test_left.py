"""How long a planned run still takes, by hand; and what a run tells that its hours stop."""

import shutil

import pytest
from conftest import SMALL

from kit import progress
from kit.cli.commands import main
from kit.files import read_json, write_json
from kit.recipes import find_recipe
from kit.runs.directory import Run, RunError, begin_run
from kit.runs.left import estimate_left, show_left

PLANNED = {"index": 10.0, "ensemble, report": 0.0}
for fold in (0, 1):
    PLANNED |= {f"fold{fold} classifier": 100.0, f"fold{fold} embeddings": 50.0}
    PLANNED[f"fold{fold} LSTM"] = 20.0


@pytest.fixture
def planned_run(tmp_path):
    """A run of two folds; the first is done and took twice, half and as long as planned."""
    run = Run(tmp_path)
    begin_run(run, find_recipe("demo", SMALL), tmp_path)
    run.slices.touch()
    stages = [{"name": name, "seconds": seconds} for name, seconds in PLANNED.items()]
    write_json(run.plan, {"stages": stages})
    spent = {"index": 5, "fold0 classifier": 200, "fold0 embeddings": 25, "fold0 LSTM": 20}
    costs = {"processor_seconds": 0, "gpu_seconds": 0}
    write_json(run.timings, {name: {"seconds": each, **costs} for name, each in spent.items()})
    # One epoch of the classifier, its store, two epochs of the LSTM on it.
    note_epochs(run.classifier(0), [190.0])
    note_epochs(run.lstm(0, 1), [8.0, 9.0])
    run.store(0, 1).mkdir(parents=True)
    write_json(run.store(0, 1) / "store.json", {})
    return run


def note_epochs(folder, seconds):
    folder.mkdir(parents=True, exist_ok=True)
    history = [
        {"epoch": epoch, "loss": 0.1, "seconds": each} for epoch, each in enumerate(seconds, 1)
    ]
    write_json(folder / "history.json", history)


def test_stages_go_on_as_those_of_their_kind_went(planned_run):
    assert estimate_left(planned_run) == pytest.approx(100 * 2 + 50 / 2 + 20)


def test_epochs_that_are_done_count_with_their_seconds(planned_run):
    note_epochs(planned_run.lstm(1, 1), [30.0])
    # 30 planned seconds of LSTMs took 50; a half of fold 1's 20 is left.
    assert estimate_left(planned_run) == pytest.approx(200 + 25 + 10 * 50 / 30)


def test_what_is_begun_and_has_no_epoch_yet_goes_as_planned(planned_run):
    shutil.rmtree(planned_run.path / "fold0")
    planned_run.timings.unlink()
    assert estimate_left(planned_run) == pytest.approx(2 * (100 + 50 + 20))


def test_it_is_told_when_a_bar_opens_and_noted(planned_run, capsys):
    with show_left(planned_run):
        progress.open_bar("Fold 1 classifier", 10).close()
    progress.open_bar("something else", 10).close()
    assert capsys.readouterr().err.count("about 4 min left of the run") == 1
    assert read_json(planned_run.plan)["left_seconds"] == 245.0


def test_a_run_without_a_plan_tells_nothing(planned_run, capsys):
    planned_run.plan.unlink()  # as every run of version 0.1.0
    with show_left(planned_run):
        progress.open_bar("Fold 1 classifier", 10).close()
    assert "left of the run" not in capsys.readouterr().err
    assert not planned_run.plan.exists()


@pytest.mark.parametrize("plan", [{"stages": [{"name": "index"}]}, {"stages": ["index"]}, {}])
def test_a_plan_that_kit_did_not_write_is_named(planned_run, plan):
    write_json(planned_run.plan, plan)
    with pytest.raises(RunError, match=r"plan\.json"):
        estimate_left(planned_run)


def test_a_run_that_its_hours_stop_notes_what_is_left(small_data, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["run", str(small_data), "--run", str(run), "--recipe", "demo", "--quiet", "--hours"]
    flags = ["--train-folds", "0", "--classifier-epochs", "1", "--lstm-epochs", "1"]
    assert main([*words, "0.00001", *flags]) == 3
    capsys.readouterr()
    plan = read_json(run / "plan.json")
    assert plan["recipe"]["classifier"]["image_size"] == 64
    planned = 3600 * plan["hours"]
    assert 0 < plan["left_seconds"] <= planned
    # The next session goes on with the same plan; a stage that is done is no longer left.
    assert main(["train-classifier", str(run), "--quiet", "--hours", "1"]) == 0
    with show_left(Run(run)):
        progress.open_bar("Fold 0 embeddings", 10).close()
    later = read_json(run / "plan.json")
    assert later["rates"] == plan["rates"]
    assert later["left_seconds"] < plan["left_seconds"]
