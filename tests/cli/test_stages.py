"""The commands that make a run: what they print, where they write, what they refuse."""

import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import check_told_at_once, kit

from kit.cli.commands import main
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run


def test_a_finished_run_has_nothing_to_do_and_prints_its_scores(small_run, small_data):
    from conftest import SMALL

    flags = ["--lstm-epochs", SMALL["lstm.epochs"], "--lstm-hidden-size", 16, "--folds", 2]
    flags += ["--train-folds", "0,1", "--bag-lstm-epochs", 2, "--classifier-epochs", 1]
    run = kit("run", small_data, "--recipe", "demo", "--run", small_run, *flags)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].startswith("Out-of-fold log loss of ")
    assert max(map(len, lines[:11])) <= 80
    assert lines[1].split() == ["classifier", "rolling", "mean", "LSTM", "bag"]
    assert lines[8].startswith("weighted ")


def test_each_stage_can_be_called_by_itself(small_data, tmp_path):
    run = tmp_path / "run"
    flags = ["--folds", 2, "--train-folds", "0", "--bag-lstm-epochs", 1]
    flags += ["--classifier-epochs", 1, "--lstm-epochs", 1, "--lstm-hidden-size", 8]
    for command in (
        ["index", small_data, "--run", run, "--recipe", "demo", *flags],
        ["train-classifier", run, "--fold", 0],
        ["embed", run],
        ["train-lstm", run],
        ["ensemble", run],
        ["report", run],
    ):
        done = kit(*command, "--quiet")
        assert done.returncode == 0, done.stderr
        # The phantom has scans of two slices at each place, as the competition has.
        noted = (
            "another slice of its series is at the same place\n" if command[0] == "index" else ""
        )
        assert done.stderr.partition(" slices: ")[2] == noted
        assert done.stderr.count("\n") == noted.count("\n")
        if command[0] in ("train-classifier", "embed", "train-lstm"):
            assert Path(done.stdout.strip()).is_dir()  # where it has written
    assert (run / "submission.csv").exists()
    refused = kit("embed", run, "--fold", 1)
    assert refused.returncode == 1
    assert "--fold 1: the run has 0" in refused.stderr


def test_the_command_that_status_prints_goes_on_to_the_end(small_run, small_data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run.path, run)
    (run / "report.html").unlink()
    left = kit("status", run).stdout.splitlines()
    assert left[-2] == "1 of 10 outputs left; this continues:"
    done = kit(*shlex.split(left[-1])[1:], "--quiet")
    assert done.returncode == 0, done.stderr
    assert kit("status", run).stdout.splitlines()[-1] == "complete"
    # With another flag it would be another run.
    refused = kit(*shlex.split(left[-1])[1:], "--lstm-epochs", 3)
    assert "was begun with recipe" in refused.stderr


MISTAKES = {
    "--folds 1000000000": (1, "kit: folds is 1000000000; it must be at most 100"),
    "--train-folds 7": (1, "kit: train_folds (7,) are not among 0 to 2"),
    "--lstm-epochs many": (2, "invalid int value: 'many'"),
    "--workers -3": (2, "-3 is not a number of processes"),
    "--nonsense": (2, "unrecognized arguments: --nonsense"),
    "": (1, "there is no such folder or zip archive"),
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_in_the_flags_is_told_before_torch_is_loaded(flags, tmp_path):
    words = ["run", str(tmp_path / "data"), "--recipe", "demo", "--run", str(tmp_path / "run")]
    check_told_at_once([*words, *flags.split()], *MISTAKES[flags])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command", ["train-classifier", "embed", "train-lstm", "ensemble", "report", "status"]
)
def test_a_run_that_is_not_there_is_told_before_torch_is_loaded(command, tmp_path):
    check_told_at_once([command, str(tmp_path)], 1, f"kit: {tmp_path}: there is no run here")


def test_imported_embeddings_that_are_not_there_are_told_before_torch_is_loaded(tmp_path):
    words = ["import-embeddings", str(tmp_path), "--fold", "0", f"{tmp_path}/e.npz,ids.csv"]
    check_told_at_once(words, 1, f"kit: {tmp_path}: there is no run here")
    begin_run(Run(tmp_path), find_recipe("demo"), tmp_path)
    check_told_at_once(words, 1, f"kit: {tmp_path}/e.npz: No such file or directory")


def test_a_phantom_is_not_written_over(small_data):
    done = kit("phantom", small_data)
    assert done.returncode == 1
    assert "already exists" in done.stderr


def test_every_stage_says_where_it_writes(small_data, tmp_path):
    run = tmp_path / "run"
    flags = ["--folds", 2, "--train-folds", "0", "--classifier-epochs", 1, "--lstm-epochs", 1]
    done = kit("run", small_data, "--recipe", "demo", "--run", run, *flags)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" → ") for line in done.stderr.splitlines() if " → " in line)
    assert list(said) == [
        "index",
        "fold0 classifier",
        "fold0 embeddings",
        "fold0 LSTM",
        "ensemble",
        "report",
    ]
    assert all(Path(path).exists() for path in said.values())
    assert said["fold0 LSTM"] == str(run / "fold0" / "lstm" / "epoch1")


def test_a_mistyped_path_neither_leaves_nor_spoils_a_run(small_data, tmp_path, capsys):
    for command in ("train-classifier", "embed", "train-lstm", "ensemble", "report", "status"):
        assert main([command, str(tmp_path / "nowhere")]) == 1
        assert "there is no run here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    index = ["index", "--recipe", "demo", "--run", str(tmp_path / "run"), "--quiet"]
    assert main([*index, str(tmp_path / "tpyo")]) == 1
    weights = ["--weights", str(tmp_path / "lost.pth")]
    assert main([*index, str(small_data), *weights]) == 1
    assert "lost.pth: there is no such file of weights" in capsys.readouterr().err
    assert main([*index, str(small_data)]) == 0


def test_the_hours_are_those_of_all_folds(small_run, monkeypatch):
    from kit import pipeline

    deadlines, clock = [], iter(range(100, 1000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stage = replace(
        pipeline.STAGES["embed"],
        execute=lambda run, fold, deadline, workers: deadlines.append(deadline),
    )
    monkeypatch.setitem(pipeline.STAGES, "embed", stage)
    assert main(["embed", str(small_run), "--hours", "1"]) == 0
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]
