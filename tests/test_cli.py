import json
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

from kit.__main__ import COMMANDS, main


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
    assert "Not a medical device" in text


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: kit " + command in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = "import sys; from kit.__main__ import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'pandas', 'timm', 'kaggle', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_every_field_of_a_recipe_is_a_flag(small_data, tmp_path, capsys):
    from kit.recipes import find_recipe
    from kit.run import Run, read_recipe

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


def test_a_plain_error_is_one_sentence_and_exit_1(tmp_path):
    run = kit("run", tmp_path / "nowhere", "--recipe", "demo", "--run", tmp_path / "run")
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
    assert (run / "submission.csv").exists()
    refused = kit("embed", run, "--fold", 1)
    assert refused.returncode == 1
    assert "--fold 1: the run has 0" in refused.stderr


def test_own_scans_give_a_table_and_a_one_line_summary(small_run, small_data, tmp_path):
    out = tmp_path / "p.csv"
    done = kit("predict", small_data / "stage_2_test", "--run", small_run, "--out", out, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: {len(pd.read_csv(out))} slices in ")
    assert "1 files skipped. Not a medical device." in done.stdout


def test_results_can_be_had_in_json(small_run, small_data, tmp_path):
    out = tmp_path / "p.csv"
    command = ["predict", small_data / "stage_2_test", "--run", small_run, "--out", out]
    done = kit(*command, "--quiet", "--json")
    table = pd.read_csv(out)
    expected = {"slices": len(table), "series": table["SeriesInstanceUID"].nunique(), "skipped": 1}
    assert json.loads(done.stdout) == expected
    states = json.loads(kit("status", small_run, "--json").stdout)
    assert states["fold 1 classifier"] == "done"


def test_json_is_one_document_whatever_is_said_on_the_way(small_run, tmp_path):
    dry = kit("submit", small_run.submission, "--message", "try", "--dry-run", "--json")
    assert json.loads(dry.stdout)["status"] == "DRY RUN"
    assert dry.stderr.startswith("Dry run: ")
    blend = kit("ensemble", small_run, small_run, "--out", tmp_path / "blend.csv", "--json")
    scores = json.loads(blend.stdout)["runs"][str(small_run)]
    assert scores == json.loads(small_run.metrics.read_text())
    assert (tmp_path / "blend.csv").exists()


def test_a_phantom_is_not_written_over(small_data):
    done = kit("phantom", small_data)
    assert done.returncode == 1
    assert "already exists" in done.stderr
