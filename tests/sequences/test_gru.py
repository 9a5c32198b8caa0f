"""The second sequence model: the released values, the rule for long series, batches, training."""

import runpy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import shared
from torch import nn

from kit import InputError
from kit.competition import LABELS
from kit.lstm import load_lstm, make_model, predict_series, sequence_loss, train_lstm
from kit.sequences import SeriesDataset, collate_series
from kit.sequences.gru import SequenceGRU, choose_slices, find_nearest
from kit.training.checkpoints import TrainingError, save_weights
from kit.training.config import LSTMConfig
from kit.training.loop import weighted_loss

CPU = torch.device("cpu")


def config(**changes):
    small = {"embedding_size": 8, "hidden_size": 5, "model": "gru", "deltas": False}
    return LSTMConfig(**{**small, **changes})


def make_gru(**changes):
    torch.manual_seed(0)
    return make_model(config(**changes)).eval()


@pytest.fixture(scope="module")
def released():
    """The released form with drawn weights, and what draws the features."""
    drawing = runpy.run_path(str(shared("golden/released.py")))
    model = make_model(config(embedding_size=512, hidden_size=256)).eval()
    names = model.state_dict()
    drawn = {name: drawing["draw"](name, tuple(value.shape), 1) for name, value in names.items()}
    model.load_state_dict({name: torch.as_tensor(value) for name, value in drawn.items()})
    return model, drawing["features"], np.load(shared("golden/ianpan.npz"))


@pytest.mark.parametrize("slices", [1, 2, 5, 63, 64, 65, 200])
def test_logits_equal_the_released_models(released, slices):
    model, features, values = released
    embeddings = torch.from_numpy(features(slices, 1))[None]
    with torch.inference_mode():
        found, series = model(embeddings, torch.ones(1, slices, dtype=torch.bool))
    np.testing.assert_allclose(found[0], values[f"context{slices}_slices"], atol=1e-4)
    np.testing.assert_allclose(series[0], values[f"context{slices}_series"], atol=1e-4)


def test_a_long_series_is_seen_evenly_and_the_nearest_answers_a_tie_going_down():
    assert choose_slices(3, 4).tolist() == [0, 1, 2]
    assert choose_slices(6, 5).tolist() == [0, 1, 2, 4, 5]  # 1.25 → 1, 2.5 → 2 (to even), 3.75 → 4
    assert find_nearest(6, np.array([0, 1, 2, 4, 5])).tolist() == [0, 1, 2, 2, 3, 4]
    assert find_nearest(7, np.array([0, 5, 6])).tolist() == [0, 0, 0, 1, 1, 1, 2]
    model = make_gru(longest_series=3)
    embeddings = torch.randn(1, 5, 8)
    seen, mask = embeddings[:, [0, 2, 4]], torch.ones(1, 5, dtype=torch.bool)
    slices, series = model(embeddings, mask)
    expected, expected_series = model(seen, mask[:, :3])  # at the places 0, 0.5 and 1 too
    torch.testing.assert_close(slices, expected[:, [0, 0, 1, 1, 2]])
    torch.testing.assert_close(series, expected_series)


def test_a_series_does_not_depend_on_its_batch():
    model = make_gru(longest_series=6)
    items = [
        {"emb": torch.randn(n, 8), "embidx": torch.arange(n), "labels": torch.zeros(n, 6)}
        for n in (1, 9, 4)
    ]
    batch = collate_series(items)
    slices, series = model(batch["emb"], batch["mask"])
    for number, item in enumerate(items):
        alone, alone_series = model(item["emb"][None], torch.ones(1, len(item["emb"])))
        torch.testing.assert_close(slices[number][batch["mask"][number]], alone[0])
        torch.testing.assert_close(series[number], alone_series[0])


def test_the_series_is_pooled_by_an_attention_of_each_label():
    model = make_gru()
    hidden = torch.randn(1, 4, 10)
    pool = model.sequence_pool
    found = pool(hidden, torch.tensor([[True, True, False, True]]))[0]
    kept = hidden[0, [0, 1, 3]]
    for label in range(6):
        score = pool.attention[2](torch.tanh(pool.attention[0](kept)))[:, label]
        weights = score.exp() / score.exp().sum()
        mean = (weights[:, None] * kept).sum(dim=0)
        expected = mean @ pool.classifier_weight[label] + pool.classifier_bias[label]
        torch.testing.assert_close(found[label], expected)


def make_dataset(lengths=(3, 5), logits=None, size=8):
    rows, rng = sum(lengths), np.random.default_rng(0)
    table = pd.DataFrame({"series": np.repeat([f"s{n}" for n in range(len(lengths))], lengths)})
    embeddings = rng.standard_normal((rows, size)).astype(np.float16)
    table[list(LABELS)] = (embeddings[:, :6] > 0).astype(int)
    return SeriesDataset(embeddings, table, np.arange(rows), logits)


def test_the_loss_is_that_of_the_slices_and_of_the_series():
    model, dataset = make_gru(), make_dataset()
    batch = collate_series([dataset[0], dataset[1]])
    slices, series = model(batch["emb"], batch["mask"])
    found = sequence_loss((slices, series), batch["labels"], batch["mask"])
    positive = torch.from_numpy(np.stack([dataset.labels[:3].max(0), dataset.labels[3:].max(0)]))
    expected = weighted_loss(slices[batch["mask"]], torch.from_numpy(dataset.labels))
    of_slices = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])  # every slice has the loss of its series
    expected = expected + weighted_loss(series[of_slices], positive[of_slices])
    torch.testing.assert_close(found, expected)


def test_logits_are_mixed_with_the_classifiers_as_released():
    classifier = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    classifier[:3, 4] = -30  # a probability below 1e-6
    dataset = make_dataset(logits=classifier)
    plain, pooled = predict_series(make_gru(opt_level="O0"), dataset, CPU)
    shares = {"slice_share": (0.75,) * 5 + (1,), "series_share": (0.5, 0.25, 0.5, 1, 0.5, 0.5)}
    slices, series = predict_series(make_gru(opt_level="O0", **shares), dataset, CPU)
    np.testing.assert_allclose(slices[:, :5], 0.25 * classifier[:, :5] + 0.75 * plain[:, :5], 1e-5)
    np.testing.assert_allclose(slices[:, 5], plain[:, 5], rtol=1e-6)
    for number, rows in enumerate([slice(0, 3), slice(3, 8)]):
        chance = (1 / (1 + np.exp(-classifier[rows].astype(np.float64)))).max(axis=0)
        highest = np.maximum(chance, 1e-6)
        share = np.array(shares["series_share"])
        expected = (1 - share) * np.log(highest / (1 - highest)) + share * pooled[number]
        np.testing.assert_allclose(series[number], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TrainingError, match="the classifier's logits"):
        predict_series(make_gru(**shares), make_dataset(), CPU)


@pytest.mark.parametrize("opt_level", ["O0", "O1", "O2"])
def test_it_is_trained_and_loaded_by_the_same_loop(tmp_path, opt_level):
    dataset = make_dataset((3, 5, 2, 7))
    training = config(
        hidden_size=24, epochs=30, batch_size=2, learning_rate=0.01, opt_level=opt_level
    )
    history = train_lstm(dataset, training, tmp_path, CPU, validation=dataset)
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert history[-1]["validation_loss"] < history[0]["validation_loss"] / 2
    model = load_lstm(tmp_path / "epoch30.safetensors")
    assert isinstance(model, SequenceGRU)
    assert model.config.longest_series == 64
    _, series = predict_series(model, dataset, CPU)
    positive = np.stack([dataset.labels[rows].max(0) for rows in dataset.positions])
    loss = weighted_loss(torch.from_numpy(series), torch.from_numpy(positive))
    assert loss < 0.3  # the pooled answer has learned too


def test_its_names_are_the_released_ones_and_the_configuration_chooses_it(tmp_path):
    model = make_gru()
    assert {name.partition(".")[0] for name in model.state_dict()} == {
        "input_norm", "projection", "projection_norm", "sequence", "slice_head", "sequence_pool",
    }  # fmt: skip
    assert isinstance(model.sequence, nn.GRU)
    save_weights(tmp_path / "weights.safetensors", model)
    again = load_lstm(tmp_path / "weights.safetensors")
    torch.testing.assert_close(again.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "extra",
    [{"deltas": True}, {"packed": False}, {"standardize": True}, {"embedding_dropout": 0.5}],
)
def test_what_it_does_not_do_is_refused(extra):
    with pytest.raises(InputError, match="goes without deltas"):
        config(**extra)


@pytest.mark.parametrize("shares", [(1.0,) * 5, (2.0,) * 6])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(InputError, match=r"slice_share .* must be six shares from 0 to 1"):
        config(slice_share=shares)
