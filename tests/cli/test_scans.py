"""`kit predict` and `kit predict-test`: the files they leave and what they print."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from command_line import check_told_at_once, kit

from kit.competition import read_submission
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run
from kit.submission import validate_submission


def test_own_scans_give_a_table_and_a_one_line_summary(small_run, small_data, tmp_path):
    out = tmp_path / "p.csv"
    done = kit("predict", small_data / "stage_2_test", "--run", small_run, "--out", out, "--quiet")
    assert done.returncode == 0, done.stderr
    assert f"\n{out}: {len(pd.read_csv(out))} slices in " in f"\n{done.stdout}"
    assert "1 file skipped. Not a medical device." in done.stdout
    beside = [tmp_path / f"p.{rest}" for rest in ("json", "skipped.csv", "series.csv")]
    assert done.stdout.splitlines()[-1] == "Beside it: " + ", ".join(map(str, beside))
    assert all(path.is_file() for path in beside)


MISTAKES = {
    "--by series --threshold 3": "the threshold 3 is not a probability",
    "--report --threshold nan": "the threshold nan is not a probability",
    "--threshold 0.5": "--threshold counts for --by series and for --report alone",
    "--out p.txt": "p.txt: the table's name must end in .csv",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_what_cannot_be_predicted_is_told_before_torch_is_loaded(flags, tmp_path):
    run = Run(tmp_path / "run")
    begin_run(run, find_recipe("demo"), tmp_path)
    words = ["predict", str(tmp_path), "--run", str(run), "--out", str(tmp_path / "p.csv")]
    check_told_at_once([*words, *flags.split()], 1, MISTAKES[flags])
    words[1] = str(tmp_path / "tpyo")
    check_told_at_once(words, 1, "tpyo: there is no such folder or zip archive")
    words[1:4] = [str(tmp_path), "--run", str(run.path / "fold0")]
    check_told_at_once(words, 1, f"there is no run here (is it {run}?)")


def test_an_output_among_the_scans_is_passed_over(small_run, small_data, tmp_path):
    scans = shutil.copytree(small_data / "stage_2_test", tmp_path / "scans")
    out = scans / "sub" / "p.csv"
    command = ["predict", scans, "--run", small_run, "--out", out, "--quiet"]
    first = kit(*command, "--report")
    assert first.returncode == 0, first.stderr
    assert "1 file skipped" in first.stdout  # the one that is cut short
    (out.parent / ".p.kit-work").mkdir()
    (out.parent / ".p.kit-work" / "source.json").write_text("{}")
    (out.parent / "notes.txt").write_text("mine")
    again = kit(*command, "--overwrite")
    assert "2 files skipped" in again.stdout


def test_a_folder_that_cannot_be_listed_is_loud_or_told_and_passed_over(
    small_run, small_data, tmp_path, monkeypatch, capsys
):
    from kit.cli.commands import main

    scans = tmp_path / "scans"
    (scans / "clo\x1b[2Jsed").mkdir(parents=True)
    (scans / "good").symlink_to(small_data / "stage_2_test")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("sed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    call = ["predict", str(scans), "--run", str(small_run.path), "--out", str(tmp_path / "p.csv")]
    call += ["--quiet", "--workers", "0"]
    assert main(call) == 1
    error = capsys.readouterr().err
    assert error == f"kit: {scans}/clo\\x1b[2Jsed: Permission denied\n"
    assert main([*call, "--skip-unreadable"]) == 0
    captured = capsys.readouterr()
    assert "clo\\x1b[2Jsed: folder cannot be listed: Permission denied; its" in captured.err
    assert "\x1b" not in captured.err + captured.out
    skipped = pd.read_csv(tmp_path / "p.skipped.csv")
    assert "folder cannot be listed" in skipped["code"].tolist()


def test_results_can_be_had_in_json(small_run, small_data, tmp_path):
    out = tmp_path / "p.csv"
    command = ["predict", small_data / "stage_2_test", "--run", small_run, "--out", out]
    done = kit(*command, "--quiet", "--json")
    table = pd.read_csv(out)
    found = json.loads(done.stdout)
    assert found.pop("provenance")["name"] == "recipe demo"
    assert found == {
        "slices": len(table),
        "series": table["SeriesInstanceUID"].nunique(),
        "skipped": 1,
        "repaired": 0,
        "calibrated": False,
        "table": str(out),
        "manifest": str(tmp_path / "p.json"),
        "skipped_list": str(tmp_path / "p.skipped.csv"),
        "series_table": str(tmp_path / "p.series.csv"),
    }
    assert (tmp_path / "p.json").exists()
    assert (tmp_path / "p.skipped.csv").exists()
    states = json.loads(kit("status", small_run, "--json").stdout)
    assert states["fold 1 classifier"] == "done"


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
