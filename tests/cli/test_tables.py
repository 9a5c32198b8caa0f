"""The tables that commands print, written out by hand."""

import shlex
import shutil
from pathlib import Path

import pandas as pd

from kit.cli.commands import make_parser
from kit.cli.flags import read_recipe
from kit.cli.tables import (
    describe_prediction,
    format_blend,
    format_plan,
    format_scores,
    format_stages,
)
from kit.competition import LABELS
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run

LOSSES = {**{label: number / 10 for number, label in enumerate(LABELS, 1)}, "weighted": 0.45678}


def test_scores_are_a_column_for_each_model():
    other = {"all": LOSSES, "0": LOSSES}
    scores = {"rolling_mean": other, "bag": {"all": LOSSES, "0": {**LOSSES, "weighted": 1.0}}}
    text = format_scores({"slices": 12, "scores": scores, "filled": 1})
    assert text.splitlines() == [
        "Out-of-fold log loss of 12 slices",
        "                      rolling mean           bag",
        "epidural                    0.1000        0.1000",
        "intraparenchymal            0.2000        0.2000",
        "intraventricular            0.3000        0.3000",
        "subarachnoid                0.4000        0.4000",
        "subdural                    0.5000        0.5000",
        "any                         0.6000        0.6000",
        "weighted                    0.4568        0.4568",
        "weighted, fold 0            0.4568        1.0000",
        "1 test image without a prediction: see filled.csv",
    ]


def test_a_bag_that_is_worse_than_its_classifier_is_said_to_be():
    better = {"all": {**LOSSES, "weighted": 0.25}}
    text = format_scores({"slices": 12, "scores": {"classifier": better, "bag": {"all": LOSSES}}})
    said = " ".join(text.splitlines()[-5:])
    assert "The sequence models make it worse: the weighted log loss is 0.4568 with them" in said
    assert "0.2500 by the classifier alone" in said
    assert "The submission is still theirs" in said
    assert max(map(len, text.splitlines())) <= 80
    same = {"classifier": {"all": LOSSES}, "bag": {"all": LOSSES}}
    assert "worse" not in format_scores({"slices": 12, "scores": same})


def test_what_has_no_score_says_so():
    expected = "No slices were held out, so there is no out-of-fold score."
    assert format_scores({"slices": 0, "scores": {}}) == expected
    assert format_blend({"slices": 0, "scores": {}}).splitlines()[1].startswith("no score: ")


def test_an_unfinished_run_ends_with_the_command_that_continues_it(tmp_path):
    recipe = find_recipe("demo", {"lstm.epochs": 3, "train_folds": (), "classifier.weights": "a b"})
    run, table = Run(tmp_path / "run"), tmp_path / "folds.csv"
    begin_run(run, recipe, Path("my data.zip"))
    for file, megabytes in ((run.store(0, 4) / "a", 30), (run.predictions(0, 4, 1), 20)):
        file.parent.mkdir(parents=True)
        with open(file, "wb") as sparse:
            sparse.truncate(megabytes * 10**6)
    stages = [("index", "done"), ("fold 0 classifier", "missing")]
    lines = format_stages(run, stages).splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["done", "missing"]
    sizes = "50.00 MB (classifier 0.00, embeddings 30.00, lstm 20.00, other 0.00)"
    assert lines[2] == f"on the disk: {sizes}"
    assert lines[3] == "1 of 2 outputs left; this continues:"
    assert lines[4] == (
        f"kit run 'my data.zip' --recipe demo --run {run} --train-folds= "
        "'--classifier-weights=a b' --lstm-epochs=3"
    )
    words = shlex.split(lines[4])[1:]
    assert read_recipe(make_parser(words).parse_args(words)) == recipe
    assert format_stages(run, stages[:1]).splitlines()[-1] == "complete"
    table.write_text("PatientID,fold")
    shutil.rmtree(run.path / "fold0")
    begin_run(run, recipe, Path("my data.zip"), table)
    assert format_stages(run, stages).endswith("--lstm-epochs=3 --fold-table FOLDS.csv")


def test_a_prediction_counts_its_slices_series_and_corrected_files():
    table = pd.DataFrame({"series": ["a", "a", "b"], "repaired": [True, False, True]})
    expected = "p.csv: 3 slices in 2 series, 2 wrong intercepts corrected, 0 files skipped."
    assert describe_prediction(Path("p.csv"), table, 0).startswith(expected)


def test_a_plan_is_a_row_a_stage_and_says_what_was_measured():
    stage = {"name": "fold0 classifier", "seconds": 7800.0, "gpu_hours": 4.333, "bytes": 2.5e9}
    plan = {
        "recipe": {"name": "single"},
        "images": {"train": 752803, "test": 121232},
        "machine": {"devices": 2, "gpu": "Tesla T4", "cores": 4, "workers": 3},
        "rates": {
            "image_size": 256,
            "headers": 5210.4,
            "training_images": 812.2,
            "images": 950.0,
            "trained": 61.26,
            "embedded": 180.0,
            "lstm_step_seconds": 0.024,
            "reading_start": 1.23,
        },
        "stages": [{**stage, "bottleneck": "computing"}],
        "hours": 2.1667,
        "gpu_hours": 4.3333,
        "bytes": 2.5e9,
        "session_hours": 2.0,
        "sessions": 2,
        "hours_by_size_and_epochs": {256: {1: 0.72, 2: 1.44}, 384: {1: 1.62, 2: 3.25}},
    }
    assert format_plan(plan).splitlines() == [
        "single at 256 px on 752,803 training and 121,232 test images",
        "2 × Tesla T4; 4 cores, 3 reading",
        "",
        "stage                            time  GPU-hours       GB  waits for",
        "fold0 classifier           2 h 10 min       4.33     2.50  computing",
        "total                      2 h 10 min       4.33     2.50  2 sessions of 2 h",
        "",
        "Measured here, a second: 5,210 headers; 812 images read and",
        "augmented, 950 read; 61.3 trained and 180.0 embedded on one device. An LSTM",
        "step: 24 ms; readers start in 1.2 s. Not measured: that several GPUs",
        "share images evenly, other sizes (by their pixels), compiling, reports.",
        "",
        "Hours by image size (rows) and classifier epochs; * ends within 2 h",
        "px           1         2",
        "256       0.72*     1.44*",
        "384       1.62*     3.25",
    ]
    plan["machine"] = {**plan["machine"], "gpu": "", "devices": 1}
    assert "no GPU, so on the CPU; 4 cores, 3 reading" in format_plan(plan)
