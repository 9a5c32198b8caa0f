"""The rates of this machine, measured for a moment: positive, of a run's own work."""

import math
import time
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch

from kit import InputError, images
from kit.competition import LABELS
from kit.recipes import find_recipe
from kit.runs.rates import SERIES_SLICES, measure_classifier, measure_images, measure_rates
from kit.slices.index import list_files
from kit.training.checkpoints import load_weights


@pytest.fixture(scope="module")
def files(small_data):
    return list_files(small_data / "stage_2_train")


def make_table(files):
    return pd.DataFrame({"path": files, "series": 0}).assign(**dict.fromkeys(LABELS, 0.0))


def test_every_rate_is_positive_and_finite(small_run, files):
    before = torch.random.get_rng_state()
    rates = measure_rates(files, find_recipe("demo", {"lstm.hidden_size": 16}), 1, seconds=0.1)
    assert all(math.isfinite(value) and value > 0 for value in asdict(rates).values())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert rates.image_size == 64
    weights, _ = load_weights(small_run.classifier(0) / "epoch1.safetensors")
    assert rates.classifier_bytes == sum(value.nbytes for value in weights.values())
    assert rates.embedding_size == 512
    weights, _ = load_weights(small_run.lstm(0, 1) / "epoch2.safetensors")
    assert rates.lstm_bytes == sum(value.nbytes for value in weights.values())


def test_a_reader_that_waits_is_measured_as_slow(files, monkeypatch):
    read_image, begin = images.read_image, time.monotonic() + 0.7

    def read_slowly(*arguments):
        time.sleep(max(0.02, begin - time.monotonic()))  # a slow start, told apart
        return read_image(*arguments)

    monkeypatch.setattr(images, "read_image", read_slowly)
    config = find_recipe("demo").classifier
    rate, started = measure_images(make_table(files), config, 1, seconds=0.5)
    assert 10 < rate <= 50
    assert 0.6 < started < 20


def test_training_is_timed_in_the_loop_itself_without_its_start(files, monkeypatch):
    from kit.runs import rates

    taken = []

    def compute_slowly(model, batch):
        taken.append(len(batch["labels"]))
        time.sleep(0.5 if len(taken) <= 2 else 0.05)  # a slow start, which is left out
        return sum(value.sum() for value in model.parameters()) * 0

    monkeypatch.setattr(rates, "compute_image_loss", compute_slowly)
    config = replace(find_recipe("demo").classifier, batch_size=4)
    found = measure_classifier(make_table(files), config, torch.device("cpu"), seconds=0.3)
    assert taken[0] == 4
    assert found["trained"] <= 4 / 0.05
    assert found["trained"] > 4 / 0.5
    assert found["embedding_size"] == 512


def test_few_files_are_enough_for_a_measurement(files):
    recipe = find_recipe("demo", {"lstm.hidden_size": 16})
    rates = measure_rates(files[:3], recipe, 1, seconds=0.1)
    assert all(math.isfinite(value) and value > 0 for value in asdict(rates).values())


def test_files_without_an_image_are_named(tmp_path):
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    with pytest.raises(InputError, match=r"no file of a sample gives an image; .*broken\.dcm: "):
        measure_rates([str(broken)], find_recipe("demo"), 1, seconds=0.1)


def test_neighbours_are_read_with_their_slices(files):
    config = replace(find_recipe("demo").classifier, neighbours=(-1, 0, 1), batch_size=4)
    found = measure_classifier(make_table(files), config, torch.device("cpu"), seconds=0.1)
    assert found["trained"] > 0


def test_the_recipe_with_neighbours_and_another_backbone_is_timed_as_it_is(files):
    options = {"depths": [1, 1, 1, 1], "dims": [16, 16, 16, 24]}
    changes = {"classifier.architecture_options": options, "classifier.image_size": 64}
    recipe = find_recipe("modern", {**changes, "lstm.hidden_size": 16})
    rates = measure_rates(files, recipe, 1, seconds=0.1)  # with random weights: nothing is fetched
    assert all(math.isfinite(value) and value > 0 for value in asdict(rates).values())
    assert (rates.embedding_size, rates.image_size) == (24, 64)
    stem = 9 * 16 * 4 * 4 + 3 * 16
    blocks = [dim * (49 + 1 + 2 + 4 * dim + 4 + 4 * dim + 1 + 1) for dim in (16, 16, 16, 24)]
    between = [2 * a + 4 * a * b + b for a, b in ((16, 16), (16, 16), (16, 24))]
    head = 2 * 24 + 6 * 24 + 6
    assert rates.classifier_bytes == 4 * (stem + sum(blocks) + sum(between) + head)


def test_the_second_sequence_model_is_timed_too(files):
    changes = {"lstm.hidden_size": 16, "lstm.model": "gru", "lstm.deltas": False}
    changes |= {"lstm.standardize": False, "lstm.embedding_dropout": 0.0}
    changes |= {"lstm.slice_share": (0.5,) * 6}
    rates = measure_rates(files, find_recipe("demo", changes), 1, seconds=0.1)
    assert min(rates.lstm_step_seconds, rates.lstm_slices) > 0


def test_series_are_as_long_as_in_the_competition():
    assert pytest.approx(752_803 / 21_744, abs=0.05) == SERIES_SLICES
