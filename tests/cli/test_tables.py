"""The tables that commands print, written out by hand."""

from pathlib import Path

import pandas as pd

from kit.cli.tables import describe_prediction, format_blend, format_scores, format_stages
from kit.competition import LABELS
from kit.runs.directory import Run

LOSSES = {**{label: number / 10 for number, label in enumerate(LABELS, 1)}, "weighted": 0.45678}


def test_scores_are_a_row_for_each_model_and_fold():
    scores = {"bag": {"all": LOSSES, "0": {**LOSSES, "weighted": 1.0}}}
    text = format_scores({"slices": 12, "scores": scores, "filled": 1})
    assert text.splitlines() == [
        "Out-of-fold log loss of 12 slices",
        "model         fold  epidur parench ventric subarac  subdur     any  weighted",
        "bag            all  0.1000  0.2000  0.3000  0.4000  0.5000  0.6000    0.4568",
        "                 0  0.1000  0.2000  0.3000  0.4000  0.5000  0.6000    1.0000",
        "1 test image without a prediction: see filled.csv",
    ]


def test_what_has_no_score_says_so():
    expected = "No slices were held out, so there is no out-of-fold score."
    assert format_scores({"slices": 0, "scores": {}}) == expected
    assert format_blend({"slices": 0, "scores": {}}).splitlines()[1].startswith("no score: ")


def test_an_unfinished_run_ends_with_the_command_that_continues_it():
    config = {"data": "data.zip", "recipe": {"name": "demo"}}
    stages = [("index", "done"), ("fold 0 classifier", "missing")]
    lines = format_stages(Run(Path("runs/a")), config, stages).splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["done", "missing"]
    assert lines[2].startswith("1 of 2 stages left; ")
    assert lines[3] == "kit run data.zip --recipe demo --run runs/a"
    finished = format_stages(Run(Path("runs/a")), config, stages[:1])
    assert finished.splitlines()[-1] == "complete"


def test_a_prediction_counts_its_slices_series_and_corrected_files():
    table = pd.DataFrame({"series": ["a", "a", "b"], "repaired": [True, False, True]})
    expected = "p.csv: 3 slices in 2 series, 2 wrong intercepts corrected, 0 files skipped."
    assert describe_prediction(Path("p.csv"), table, 0).startswith(expected)
