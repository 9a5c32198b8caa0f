import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from kit import InputError, __version__
from kit.cli.commands import COMMANDS, main, make_parser
from kit.competition import LABELS, read_submission
from kit.runs.export import read_prior
from kit.submission import validate_submission
from kit.training.loop import OutOfTime


def kit(*arguments, **options):
    command = [sys.executable, "-m", "kit", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_help_teaches_and_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n    {name}" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Not a medical device" in text


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: kit " + command in text
    assert max(map(len, text.splitlines())) <= 80
    assert "(default: None)" not in text
    assert "(default: False)" not in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["import-embeddings", "run", "--fold", "0", "x.npz"], "'x.npz' is not NPZ,CSV"),
        (["run", "d", "--recipe", "demo", "--run", "r", "--train-folds", "a"], "not numbers"),
        (
            [
                "run",
                "d",
                "--recipe",
                "demo",
                "--run",
                "r",
                "--classifier-architecture-options",
                "[",
            ],
            "is not JSON",
        ),
    ],
)
def test_a_flag_that_cannot_be_read_is_told_why(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    code = "import sys; from kit.cli.commands import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'pandas', 'timm', 'kaggle', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_every_field_of_a_recipe_is_a_flag(small_data, tmp_path, capsys):
    from kit.recipes import find_recipe
    from kit.runs.directory import Run, read_recipe

    flags = ["--lstm-epochs", "7", "--bag-lstm-epochs", "2", "--no-classifier-augment"]
    flags += ["--train-folds", "0,2", "--classifier-architecture-options", '{"layers": [1,1,1,2]}']
    code = main(
        ["index", str(small_data), "--recipe", "demo", "--run", str(tmp_path / "run"), *flags]
    )
    assert code == 0
    recipe = read_recipe(Run(tmp_path / "run"))
    expected = find_recipe(
        "demo",
        {
            "lstm.epochs": 7,
            "bag_lstm_epochs": 2,
            "classifier.augment": False,
            "train_folds": (0, 2),
            "classifier.architecture_options": {"layers": [1, 1, 1, 2]},
        },
    )
    assert recipe == expected
    assert "slices in" in capsys.readouterr().out


def test_fewer_epochs_than_a_recipe_averages_are_all_averaged():
    from kit.recipes import find_recipe

    recipe = find_recipe("published", {"lstm.epochs": 8, "classifier.epochs": 3})
    assert (recipe.bag_lstm_epochs, recipe.bag_classifier_epochs) == (8, 3)
    assert find_recipe("published", {"lstm.epochs": 20}).bag_lstm_epochs == 12
    with pytest.raises(ValueError, match="bag_lstm_epochs is 9; it must be 1 to the 8"):
        find_recipe("published", {"lstm.epochs": 8, "bag_lstm_epochs": 9})


def test_a_plain_error_is_one_sentence_and_exit_1(tmp_path):
    command = ["run", tmp_path / "nowhere", "--recipe", "demo", "--run", tmp_path / "run"]
    run = kit(*command, "--quiet")
    assert run.returncode == 1
    assert run.stderr.strip() == f"kit: {tmp_path}/nowhere: there is no such folder or zip archive"
    assert "Traceback" not in run.stderr


def test_a_wrong_call_is_exit_2(tmp_path):
    assert kit("run", tmp_path, "--recipe", "magic", "--run", tmp_path).returncode == 2
    assert kit().returncode == 2


def test_a_finished_run_has_nothing_to_do_and_prints_its_scores(small_run, small_data):
    from conftest import SMALL

    flags = ["--lstm-epochs", SMALL["lstm.epochs"], "--lstm-hidden-size", 16, "--folds", 2]
    flags += ["--train-folds", "0,1", "--bag-lstm-epochs", 2, "--classifier-epochs", 1]
    run = kit("run", small_data, "--recipe", "demo", "--run", small_run, *flags)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0].startswith("Out-of-fold log loss of ")
    assert max(map(len, lines[:14])) <= 80
    assert [line.split()[0] for line in lines[2:14:3]] == ["classifier", "rolling", "LSTM", "bag"]


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
        assert done.stderr == ""
        if command[0] in ("train-classifier", "embed", "train-lstm"):
            assert Path(done.stdout.strip()).is_dir()  # where it has written
    assert (run / "submission.csv").exists()
    refused = kit("embed", run, "--fold", 1)
    assert refused.returncode == 1
    assert "--fold 1: the run has 0" in refused.stderr


def test_own_scans_give_a_table_and_a_one_line_summary(small_run, small_data, tmp_path):
    out = tmp_path / "p.csv"
    done = kit("predict", small_data / "stage_2_test", "--run", small_run, "--out", out, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: {len(pd.read_csv(out))} slices in ")
    assert "1 file skipped. Not a medical device." in done.stdout
    refused = kit("predict", small_data, "--run", small_run, "--out", out, "--threshold", 3)
    assert refused.returncode == 1
    assert refused.stderr == "kit: the threshold 3 is not a probability\n"


def test_results_can_be_had_in_json(small_run, small_data, tmp_path):
    out = tmp_path / "p.csv"
    command = ["predict", small_data / "stage_2_test", "--run", small_run, "--out", out]
    done = kit(*command, "--quiet", "--json")
    table = pd.read_csv(out)
    assert json.loads(done.stdout) == {
        "slices": len(table),
        "series": table["SeriesInstanceUID"].nunique(),
        "skipped": 1,
        "repaired": 0,
        "table": str(out),
        "manifest": str(tmp_path / "p.json"),
        "skipped_list": str(tmp_path / "p.skipped.csv"),
    }
    assert (tmp_path / "p.json").exists()
    assert (tmp_path / "p.skipped.csv").exists()
    states = json.loads(kit("status", small_run, "--json").stdout)
    assert states["fold 1 classifier"] == "done"


def test_json_is_one_document_whatever_is_said_on_the_way(small_run, tmp_path):
    dry = kit("submit", small_run.submission, "--message", "try", "--dry-run", "--json")
    assert json.loads(dry.stdout)["status"] == "DRY RUN"
    assert dry.stderr.startswith("Dry run: ")
    blend = kit("ensemble", small_run, small_run, "--out", tmp_path / "blend.csv", "--json")
    said, metrics = json.loads(blend.stdout), json.loads(small_run.metrics.read_text())
    assert said["runs"][str(small_run)] == metrics
    # A run averaged with itself is itself.
    found, expected = said["blend"]["scores"]["bag"]["all"], metrics["scores"]["bag"]["all"]
    assert found == pytest.approx(expected, abs=1e-9)
    assert (tmp_path / "blend.csv").exists()


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
        pipeline.STAGES["train-lstm"],
        execute=lambda run, fold, deadline: deadlines.append(deadline),
    )
    monkeypatch.setitem(pipeline.STAGES, "train-lstm", stage)
    assert main(["train-lstm", str(small_run), "--hours", "1"]) == 0
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]


def test_progress_fits_80_columns_and_is_lines_in_a_log(small_run, small_data, tmp_path):
    done = kit("predict", small_data / "stage_2_test", "--run", small_run,
               "--out", tmp_path / "p.csv")  # fmt: skip
    lines = done.stderr.replace("\r", "").splitlines()
    assert any("100%" in line and "slices/s" in line for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.fixture
def failing(monkeypatch):
    """A function that makes `kit status` raise the error that it is given."""

    def fail_with(error: BaseException) -> None:
        def execute(options):
            raise error

        monkeypatch.setitem(COMMANDS, "status", COMMANDS["status"]._replace(execute=execute))

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (InputError("the threshold 3 is not a probability"), 1, "the threshold 3 is not a prob"),
        (OutOfTime("stopped in time after step 1"), 3, "stopped in time after step 1"),
        (OSError(28, "No space left on device", "run/x"), 1, "run/x: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues from what is saved"),
    ],
)
def test_each_kind_of_error_has_its_sentence_and_exit_code(error, code, sentence, failing, capsys):
    failing(error)
    assert main(["status", "run"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"kit: {sentence}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_bug_keeps_its_traceback_and_says_how_to_report_it(failing, capsys):
    failing(KeyError("fold"))
    assert main(["status", "run"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == "KeyError: 'fold'"
    assert lines[-1].startswith(f"This is a bug in kit {__version__}. Please report it with this ")


def test_traceback_shows_that_of_an_expected_error_too(failing, capsys):
    failing(InputError("no"))
    assert main(["status", "run", "--traceback"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "kit: no"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_takes_the_flags_that_all_have(command):
    (own,) = (
        action for action in make_parser([command])._actions if hasattr(action, "choices")
        and action.choices
    )  # fmt: skip
    flags = own.choices[command]._option_string_actions
    assert {"--quiet", "--json", "--traceback"} <= set(flags)


def test_the_test_part_is_predicted_with_the_prior_of_the_run(small_run, small_data, tmp_path):
    out = tmp_path / "submission.csv"
    done = kit("predict-test", small_data, "--run", small_run, "--out", out, "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"submission": str(out)}
    sample = small_data / "stage_2_sample_submission.csv"
    validate_submission(out, sample)
    mine, of_the_run = read_submission(out), read_submission(small_run.submission)
    assert mine.index.equals(of_the_run.index)
    np.testing.assert_allclose(mine, of_the_run, atol=1e-4)


def test_a_run_is_predicted_with_the_share_of_its_own_labels(small_run):
    slices = pd.read_parquet(small_run.slices)
    training = slices[slices["split"] == "train"]
    np.testing.assert_allclose(read_prior(small_run), training[list(LABELS)].mean(), atol=1e-6)
