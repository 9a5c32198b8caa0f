"""Classifier and sequence model as one: shapes, memory, the loss, training, its two halves."""

import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from training.test_distributed import run_script, run_two

from kit.classifier import Classifier, load_classifier
from kit.lstm import LSTMConfig, load_lstm, make_model
from kit.lstm.joint import JointModel, JointStart, compute_loss, train_joint
from kit.lstm.series_images import SeriesImages
from kit.recipes import SMALL_RESNEXT
from kit.runs.tables import read_slices
from kit.training import amp
from kit.training.checkpoints import TrainingError, load_weights, save_weights
from kit.training.config import ClassifierConfig, JointConfig
from kit.training.loop import OutOfTime
from kit.training.optimizer import make_optimizer

CPU = torch.device("cpu")
SEEN = ClassifierConfig(
    architecture="resnext50_32x4d",
    architecture_options=SMALL_RESNEXT,
    image_size=64,
    crop=False,
    opt_level="O0",
)
LSTM = LSTMConfig(hidden_size=8, opt_level="O0")
GRU = LSTMConfig(hidden_size=8, model="gru", deltas=False, longest_series=5, opt_level="O0")


def make_joint(sequence=LSTM, **options):
    torch.manual_seed(0)
    return JointStart(JointConfig(opt_level="O0", **options), SEEN, sequence).make_model()


@pytest.fixture(scope="module")
def table(small_run):
    """The labelled slices of the first five series."""
    slices = read_slices(small_run)
    slices = slices[slices["split"] == "train"]
    return slices[slices["series"].isin(slices["series"].unique()[:5])].reset_index(drop=True)


@pytest.fixture(scope="module")
def batch(table):
    """A batch of three series, shortened to 6, 4 and 1 slices."""
    short = pd.concat(
        part.iloc[:count]
        for count, (_, part) in zip((6, 4, 1), table.groupby("series", sort=False), strict=False)
    ).reset_index(drop=True)
    (found,) = SeriesImages(short, SEEN, False, 0, None).make_batches(1, [np.arange(3)], 0)
    return found


def run(model, batch):
    return model(batch["image"], batch["parts"], batch["mask"])


@pytest.mark.parametrize("sequence", [LSTM, GRU])
def test_there_are_logits_of_slices_by_both_and_of_series_by_a_gru(sequence, batch):
    slices, series, heads = run(make_joint(sequence), batch)
    assert slices.shape == heads.shape == (3, 6, 6)
    assert series is None if sequence is LSTM else series.shape == (3, 6)


@pytest.mark.parametrize("sequence", [LSTM, GRU])
@pytest.mark.parametrize("at_once", [0, 3])
def test_a_series_answer_does_not_depend_on_its_batch(sequence, at_once, batch):
    model = make_joint(sequence, slices_at_once=at_once).eval()
    with torch.inference_mode():
        together = run(model, batch)
        for number in range(3):
            mask = batch["mask"][number : number + 1]
            alone = model(
                batch["image"], batch["parts"][number : number + 1][:, mask[0]], mask[:, mask[0]]
            )
            for one, all_ in zip(alone, together, strict=True):
                if one is not None:
                    expected = all_[number][mask[0]] if all_.ndim == 3 else all_[number]
                    torch.testing.assert_close(one[0], expected, atol=1e-5, rtol=0)


def test_the_answer_is_that_of_the_classifier_and_then_the_lstm(batch):
    """Padded positions, and what is computed with them, reach no real slice."""
    model = make_joint().eval()
    with torch.inference_mode():
        slices, _, heads = run(model, batch)
        for number, length in enumerate((6, 4, 1)):
            images = batch["image"][batch["parts"][number, 6 - length :, 0]]
            embeddings = model.classifier.embed(images)
            expected = model.sequence(embeddings[None], torch.ones(1, length, dtype=torch.bool))
            own = slice(6 - length, None)
            torch.testing.assert_close(slices[number, own], expected[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                heads[number, own], model.classifier.head(embeddings), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("sequence", [LSTM, GRU])
def test_the_loss_is_that_of_both_heads_over_real_slices(sequence, batch):
    model = make_joint(sequence, slice_weight=0.25).eval()
    slices, series, heads = run(model, batch)
    weights = np.array([1, 1, 1, 1, 1, 2]) / 7
    labels = batch["labels"].double().numpy()

    def measure(logits, truth):
        logits = logits.detach().double().numpy()
        return (np.logaddexp(0, logits) - truth * logits) @ weights

    total, count = 0.0, 0
    for number, length in enumerate((6, 4, 1)):
        for place in range(6 - length, 6):
            truth = labels[number, place]
            total += measure(slices[number, place], truth)
            total += 0.25 * measure(heads[number, place], truth)
            if series is not None:
                total += measure(series[number], labels[number].max(axis=0))
            count += 1
    assert compute_loss(model, batch).item() == pytest.approx(total / count, rel=1e-5)


def list_gradients(model, batch):
    model.train()
    torch.manual_seed(1)
    compute_loss(model, batch).backward()
    return {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_parts_whose_activations_are_computed_again_give_the_same_gradients(at_once, batch):
    whole = list_gradients(make_joint(normalization="frozen"), batch)
    parts = list_gradients(make_joint(normalization="frozen", slices_at_once=at_once), batch)
    assert max(value.abs().max() for value in whole.values()) > 1e-2
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)


def test_activations_that_are_computed_again_change_no_running_statistics(batch):
    model = make_joint(slices_at_once=4).train()
    torch.manual_seed(1)
    loss = compute_loss(model, batch)
    before = {name: value.clone() for name, value in model.named_buffers()}
    loss.backward()
    counted = 0
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name])
        if name.endswith("num_batches_tracked"):
            assert value == 3  # 11 slices in parts of 3 or 4
            counted += 1
    assert counted > 10
    # The gradient is that of the statistics of each part, as without the second computation.
    again = make_joint(slices_at_once=4).train()
    again._embed_twice = again._embed_piece
    expected = list_gradients(again, batch)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_normalization_sees_slices_of_all_series_together(batch, monkeypatch):
    model, seen = make_joint(slices_at_once=4).train(), []
    embed = model.classifier.embed
    monkeypatch.setattr(
        model.classifier, "embed", lambda images: (seen.append(images), embed(images))[1]
    )
    torch.manual_seed(2)
    run(model, batch)
    owners = [0] * 6 + [1] * 4 + [2]
    found = [
        [
            owners[int((batch["image"] == image).flatten(1).all(dim=1).nonzero()[0, 0])]
            for image in p
        ]
        for p in seen
    ]
    assert sorted(owner for part in found for owner in part) == owners
    assert max(len(set(part)) for part in found) > 1
    assert [owner for part in found for owner in part] != owners


def test_frozen_normalization_keeps_its_statistics_and_trained_does_not(batch):
    for normalization, moves in (("frozen", False), ("trained", True)):
        model = make_joint(normalization=normalization)
        before = {name: value.clone() for name, value in model.named_buffers()}
        list_gradients(model, batch)
        moved = [not torch.equal(value, before[name]) for name, value in model.named_buffers()]
        assert any(moved) == moves


def test_a_frozen_classifier_gets_no_gradients_and_computes_as_in_evaluation(batch):
    model = make_joint(freeze_classifier=True)
    gradients = list_gradients(model, batch)
    assert all(
        (value is None) == name.startswith("classifier.") for name, value in gradients.items()
    )
    assert not any(layer.training for layer in model.classifier.modules())
    parameters = {id(value) for value in model.sequence.parameters()}
    groups = make_optimizer(model, model.config).param_groups
    assert {id(value) for group in groups for value in group["params"]} == parameters


def test_each_half_has_its_rate_and_biases_do_not_decay():
    model = make_joint(learning_rate=2e-4, sequence_learning_rate=1e-3, weight_decay=0.1)
    rates = {
        id(value): (group["factor"], group["weight_decay"])
        for group in make_optimizer(model, model.config).param_groups
        for value in group["params"]
    }
    for name, value in model.named_parameters():
        factor, decay = rates[id(value)]
        assert factor == pytest.approx(5.0 if name.startswith("sequence.") else 1.0)
        assert decay == (0.0 if "bias" in name else 0.1)


def start_training(sequence=LSTM, **options):
    chosen = {"epochs": 2, "batch_size": 2, "opt_level": "O0", "seed": 5, **options}
    return JointStart(JointConfig(**chosen), SEEN, sequence)


def test_a_training_that_is_stopped_goes_on_to_the_same_bytes(table, tmp_path):
    start = start_training(slices_at_once=16)
    history = train_joint(table, start, tmp_path / "whole", CPU, 0, table)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[1]["loss"] < history[0]["loss"]
    stops = 0
    while True:
        try:
            now = time.monotonic()
            train_joint(table, start, tmp_path / "stopped", CPU, 0, table, deadline=now)
            break
        except OutOfTime:
            stops += 1
    assert stops > 2
    for name in ("classifier", "sequence"):
        name = f"{name}.safetensors"
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "stopped" / name).read_bytes() == whole
    assert not list((tmp_path / "whole").glob("epoch*"))
    # The validation loss is that of the sequence model over all slices, here of the same table.
    halves = [tmp_path / "whole" / f"{name}.safetensors" for name in ("classifier", "sequence")]
    model = JointStart(start.config, *halves).make_model().eval()
    series = SeriesImages(table, SEEN, False, 0, None)
    losses = []
    with torch.inference_mode():
        for found in series.make_batches(1, [np.array([n]) for n in range(len(series))], 0):
            logits = run(model, found)[0].double()
            bce = nn.functional.binary_cross_entropy_with_logits(
                logits, found["labels"].double(), reduction="none"
            )
            losses.append((bce @ torch.tensor([1, 1, 1, 1, 1, 2.0]).double() / 7)[0])
    assert history[-1]["validation_loss"] == pytest.approx(torch.cat(losses).mean().item(), 1e-4)


@pytest.mark.parametrize("sequence", [LSTM, GRU])
def test_the_halves_are_those_of_the_checkpoint_and_have_their_configurations(
    sequence, table, tmp_path
):
    train_joint(table, start_training(sequence, epochs=1), tmp_path, CPU, 0)
    saved, _ = load_weights(tmp_path / "checkpoint.safetensors")
    classifier = load_classifier(tmp_path / "classifier.safetensors")
    lstm = load_lstm(tmp_path / "sequence.safetensors")
    assert (classifier.config.image_size, classifier.config.epochs) == (64, 1)
    assert (lstm.config.embedding_size, lstm.config.model) == (512, sequence.model)
    for name, half in (("classifier", classifier), ("sequence", lstm)):
        for key, value in half.state_dict().items():
            assert torch.equal(value, saved[f"model.{name}.{key}"])


def test_a_frozen_training_leaves_the_classifier_as_it_was(table, tmp_path):
    start = start_training(epochs=1, freeze_classifier=True)
    train_joint(table, start, tmp_path, CPU, 0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = start.make_model()
    after = load_classifier(tmp_path / "classifier.safetensors").state_dict()
    for name, value in before.classifier.state_dict().items():
        assert torch.equal(value, after[name])
    trained = load_lstm(tmp_path / "sequence.safetensors").state_dict()
    moved = [(v - trained[n]).abs().max() for n, v in before.sequence.state_dict().items()]
    assert min(moved) > 1e-4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("opt_level", ["O1", "O2"])
def test_half_precision_stays_near_float32(opt_level, device, batch):
    expected = list_gradients(make_joint(slices_at_once=4, normalization="frozen"), batch)
    model = make_joint(slices_at_once=4, normalization="frozen").to(device)
    optimizer = make_optimizer(model, model.config)
    amp.initialize(model, optimizer, opt_level)
    model.train()
    torch.manual_seed(1)
    with amp.scale_loss(compute_loss(model, batch), optimizer) as scaled:
        scaled.backward()
    masters = {id(value): master for value, master in amp.find_scaling(optimizer).masters}
    found = {n: masters.get(id(v), v).grad.cpu() for n, v in model.named_parameters()}
    for name in ("sequence.linear.weight", "classifier.head.weight"):
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], atol=0.1 * scale, rtol=0)


def test_a_sequence_model_of_other_embeddings_is_refused(tmp_path):
    lstm = make_model(LSTMConfig(embedding_size=7, hidden_size=4))
    save_weights(tmp_path / "lstm.safetensors", lstm)
    start = JointStart(JointConfig(), SEEN, tmp_path / "lstm.safetensors")
    with pytest.raises(TrainingError, match=r"lstm\.safetensors: takes embeddings of 7 numbers; "
                       "the classifier's have 512"):  # fmt: skip
        start.make_model()


def test_by_default_as_many_pixels_pass_the_classifier_as_8_images_of_480_have():
    assert make_joint().at_once == 450  # 8 · 480² / 64²
    large = Classifier(ClassifierConfig(**{**vars(SEEN), "image_size": 480}))
    lstm = make_model(LSTMConfig(embedding_size=512, hidden_size=4))
    assert JointModel(large, lstm, JointConfig()).at_once == 8
    assert JointModel(large, lstm, JointConfig(slices_at_once=5)).at_once == 5


TWO_PROCESSES = """
import sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from kit.lstm.joint import JointStart, train_joint
from kit.runs.directory import Run
from kit.runs.tables import read_slices
from kit.training.config import ClassifierConfig, JointConfig, LSTMConfig
from kit.training.distributed import join_processes
from kit.recipes import SMALL_RESNEXT
table = read_slices(Run(Path(sys.argv[1])))
table = table[table["split"] == "train"]
table = table[table["series"].isin(table["series"].unique()[:5])].copy()
broken = Path(sys.argv[2]).parent / "broken.dcm"
broken.touch()
table.loc[table.index[3], "path"] = str(broken)
config = JointConfig(epochs=1, batch_size=3, opt_level="O0", normalization="frozen",
                     slices_at_once=16)
seen = ClassifierConfig(architecture="resnext50_32x4d", architecture_options=SMALL_RESNEXT,
                        image_size=64, crop=False, opt_level="O0")
start = JointStart(config, seen, LSTMConfig(hidden_size=8, opt_level="O0"))
with join_processes():
    train_joint(table, start, Path(sys.argv[2]), torch.device("cpu"), 0)
"""


def test_two_processes_train_to_the_weights_of_one(small_run, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    for done in (
        run_script(script, small_run.path, tmp_path / "one"),
        run_two(script, small_run.path, tmp_path / "two"),
    ):
        assert done.returncode == 0, done.stderr
    for name in ("classifier", "sequence"):
        alone, _ = load_weights(tmp_path / "one" / f"{name}.safetensors")
        together, _ = load_weights(tmp_path / "two" / f"{name}.safetensors")
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, atol=1e-5, rtol=0)
