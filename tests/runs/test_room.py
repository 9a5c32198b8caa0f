"""What a run takes on the disk at a time, as reckoned and as it is."""

import os
from dataclasses import replace

import pytest
from runs.test_plan import CPU, RATES

from kit import pipeline
from kit.recipes import find_recipe
from kit.runs.directory import Run
from kit.runs.plan import reckon
from kit.runs.room import find_peak
from kit.runs.status import measure_disk
from kit.runs.tables import read_slices

CHANGES = {
    **{"folds": 2, "train_folds": (0,), "classifier.epochs": 3, "bag_classifier_epochs": 3},
    **{"lstm.hidden_size": 128, "lstm.epochs": 3, "bag_lstm_epochs": 2, "kept_epochs": 1},
}


def test_the_peak_of_two_kept_and_one_removed_store_is_that_of_hand():
    changes = {"classifier.epochs": 3, "bag_classifier_epochs": 3, "kept_epochs": 2, "folds": 5}
    recipe = find_recipe("published", {**changes, "train_folds": (0,), "bag_lstm_epochs": 2})
    # 100 images embed to 2 * 8 + 40 bytes each, 40 of which stay; 30 are predicted, 64 bytes each
    # by each of two LSTM epochs. Weights of 1,000 and 500 bytes. In the end: one removed and two
    # whole stores, two classifiers, two LSTMs' predictions, and the first kept LSTM of two epochs;
    # then the second is trained: its checkpoint twice, an epoch's weights, its predictions.
    expected = 4000 + 2 * 5600 + 2 * 1000 + 3 * 2 * 30 * 64 + 2 * 500 + 7 * 500
    small = replace(RATES, classifier_bytes=1000, lstm_bytes=500, embedding_size=8)
    assert find_peak(recipe, 100, 30, small) == expected
    # With large classifiers it is their training: three epochs' weights, the checkpoint twice.
    large = replace(small, classifier_bytes=10_000)
    assert find_peak(recipe, 100, 30, large) == 8 * 10_000


def test_a_run_takes_and_leaves_what_the_plan_says(small_data, tmp_path, monkeypatch):
    """The most is on the disk just before a file takes the place of another."""
    run, recipe = Run(tmp_path / "run"), find_recipe("demo", CHANGES)
    replaced, taken = os.replace, []

    def measure(part, path):
        taken.append(sum(measure_disk(run).values()))
        replaced(part, path)

    monkeypatch.setattr("os.replace", measure)
    pipeline.run_recipe(small_data, recipe, run, workers=0)
    monkeypatch.undo()
    slices, lstm = read_slices(run), run.lstm(0, 3) / "epoch3.safetensors"
    rates = replace(
        RATES,
        embedding_size=512,
        classifier_bytes=(run.classifier(0) / "epoch3.safetensors").stat().st_size,
        lstm_bytes=lstm.stat().st_size,
    )
    counts = slices["split"].value_counts()
    plan = reckon(recipe, int(counts["train"]), int(counts["test"]), CPU, rates)
    found = measure_disk(run)
    left = sum(size for name, size in found.items() if name != "other")
    assert sum(stage.bytes for stage in plan.stages[1:-1]) == pytest.approx(left, rel=0.05)
    assert plan.peak == pytest.approx(max(taken), rel=0.05)
