"""`kit predict` and `kit predict-test`: the files they leave and what they print."""

import json

import numpy as np
import pandas as pd
from command_line import kit

from kit.competition import read_submission
from kit.submission import validate_submission


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
