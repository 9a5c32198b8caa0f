"""`kit train-joint`: what it prints, what its run is good for, what it refuses."""

import json
import shlex
import subprocess
import sys

import pytest
from command_line import check_told_at_once, kit

from kit.cli.commands import main
from kit.competition import read_submission
from kit.runs.directory import Run, read_recipe

FLAGS = ["--epochs", "1", "--opt-level", "O0", "--workers", "0", "--quiet"]


@pytest.fixture(scope="module")
def trained(tiny):
    """The tiny run, and beside it `joint`, its models trained jointly."""
    done = kit("train-joint", tiny / "run", "--out", tiny / "joint", *FLAGS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Out-of-fold log loss of ")
    assert lines[-2:] == [str(tiny / "joint" / name) for name in ("submission.csv", "report.html")]
    return tiny


def test_its_run_predicts_scans_and_joins_an_ensemble(trained, capsys):
    run, out = str(trained / "run"), str(trained / "joint")
    scans, table = str(trained / "data" / "stage_2_test"), trained / "predictions.csv"
    assert main(["predict", scans, "--run", out, "--out", str(table), "--quiet"]) == 0
    assert table.read_text().count("\n") > 10
    both = trained / "both.csv"
    assert main(["ensemble", run, out, "--out", str(both), "--quiet"]) == 0
    means = read_submission(both)
    each = [read_submission(trained / name / "submission.csv") for name in ("run", "joint")]
    assert (each[0] - each[1]).abs().to_numpy().max() > 1e-4
    assert (means - (each[0] + each[1]) / 2).abs().to_numpy().max() < 1e-6
    assert main(["report", run, out, "--quiet"]) == 0
    assert main(["status", out]) == 0
    assert capsys.readouterr().out.endswith("complete\n")


def test_the_same_command_has_nothing_left_to_do(trained, capsys):
    words = ["train-joint", str(trained / "run"), "--out", str(trained / "joint"), *FLAGS]
    assert main([*words, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["submission"] == str(trained / "joint" / "submission.csv")
    assert main([*words, "--slice-weight", "0.1"]) == 1
    assert "was begun with options.slice_weight = 0.5, not 0.1" in capsys.readouterr().err


def test_stopped_in_time_it_ends_with_3_and_status_prints_the_command_that_continues(trained):
    out = trained / "stopped"
    flags = [*FLAGS, "--freeze-classifier", "--batch-size", "2"]
    done = kit("train-joint", trained / "run", "--out", out, *flags, "--hours", 0)
    assert done.returncode == 3
    assert "stopped in time" in done.stderr
    lines = kit("status", out).stdout.splitlines()
    assert lines[1].split(maxsplit=4) == ["fold", "0", "joint", "model", "0 of 1 epochs"]
    assert lines[-1].startswith(f"kit train-joint {trained / 'run'} --out {out} ")
    done = kit(*shlex.split(lines[-1])[1:], "--workers", 0, "--quiet")
    assert done.returncode == 0, done.stderr
    assert kit("status", out).stdout.endswith("complete\n")


def test_the_processes_of_the_launcher_train_one_network(trained):
    out = trained / "launched"
    words = ["train-joint", trained / "run", "--out", out, *FLAGS, "--normalization", "frozen"]
    command = [sys.executable, "-m", "kit.cli.launch", "2", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kit("status", out).stdout.endswith("complete\n")
    assert read_recipe(Run(out)).lstm.epochs == 1


MISTAKES = {
    "--epochs 0": (1, "kit: epochs is 0; it must be at least 1"),
    "--normalization odd": (1, "kit: normalization 'odd' is none of trained, frozen"),
    "--freeze-classifier --from-backbone": (1, "do not go together"),
    "--learning-rate fast": (2, "invalid float value: 'fast'"),
    "--fold 7": (1, "kit: --fold 7: the run has 0"),
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_told_before_torch_is_loaded(flags, tiny, tmp_path):
    words = ["train-joint", str(tiny / "run"), "--out", str(tmp_path / "out"), *flags.split()]
    check_told_at_once(words, *MISTAKES[flags])
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_there_is_told_before_torch_is_loaded(tmp_path):
    words = ["train-joint", str(tmp_path), "--out", str(tmp_path / "out")]
    check_told_at_once(words, 1, f"kit: {tmp_path}: there is no run here")
