"""A step in parts, on one process; memory that is short."""

import numpy as np
import pytest
import torch
from small_training import Net, config, make_data, train
from torch import nn

from kit.classifier import Classifier
from kit.classifier import compute_loss as compute_image_loss
from kit.competition import LABELS
from kit.lstm import LSTMConfig, SequenceLSTM, compute_loss
from kit.recipes import SMALL_RESNEXT
from kit.sequences import SeriesDataset, collate_series
from kit.training import amp, step
from kit.training.checkpoints import TrainingError, load_weights
from kit.training.config import ClassifierConfig
from kit.training.loop import weighted_loss
from kit.training.optimizer import list_parameters, make_optimizer
from kit.training.step import Stepper
from kit.training.tuning import Tuning


def make_series(lengths, size=6):
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"series": np.repeat([f"s{n}" for n in range(len(lengths))], lengths)})
    table[list(LABELS)] = (rng.random((len(table), 6)) < 0.4).astype(np.float32)
    embeddings = rng.normal(size=(len(table), size)).astype(np.float32)
    return SeriesDataset(embeddings, table, np.arange(len(table)))


def compute_net_loss(model, batch):
    return weighted_loss(model(batch["values"]), batch["labels"])


def take_plain_steps(model, optimizer, batches, loss):
    """What the steps must equal: the joined batch at once, without any of the kit's loop."""
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


@pytest.mark.parametrize("opt_level", ["O0", "O1", "O2"])
@pytest.mark.parametrize("at_once", [10, 5, 2])  # in 1, 2 and 5 parts
def test_parts_of_unequal_series_step_as_the_joined_batch(at_once, opt_level):
    lengths = [1, 30, 2, 7, 60, 1, 3, 20, 5, 9, 40, 1, 2]
    series = make_series(lengths)
    batches = [
        collate_series([series[number] for number in numbers])
        for numbers in (range(10), range(10, 13))  # an odd last batch
    ]

    def make_model():
        torch.manual_seed(0)
        chosen = LSTMConfig(embedding_size=6, hidden_size=6, learning_rate=1e-2)
        model = SequenceLSTM(chosen)
        return model, make_optimizer(model, chosen)

    expected, optimizer = make_model()
    take_plain_steps(expected, optimizer, batches * 3, compute_loss)
    model, optimizer = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    amp.initialize(model, optimizer, opt_level)
    stepper = Stepper(model, optimizer, compute_loss, at_once)
    losses = [stepper.take(batch).read()[0] for batch in batches * 3]
    weights = amp.list_masters(model, optimizer)
    moved = [(weights[name] - value).abs().max() for name, value in before.items()]
    assert min(moved) > 1e-3
    for name, value in expected.state_dict().items():
        tolerance = 1e-5 if opt_level == "O0" else 0.02
        torch.testing.assert_close(weights[name], value, atol=tolerance, rtol=0)
    first, _ = make_model()
    assert losses[0] == pytest.approx(compute_loss(first, batches[0]).item(), rel=0.02)


def run_short(directory, chosen, most, monkeypatch):
    """A real training on a card that holds at most so many examples."""
    seen = []
    loss = weighted_loss

    def compute(logits, labels):
        seen.append(len(logits))
        if len(logits) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return loss(logits, labels)

    monkeypatch.setattr("small_training.weighted_loss", compute)
    train(directory, chosen)
    return seen


def test_a_card_that_is_too_small_gets_half_as_many_examples_at_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(nn.Dropout, "forward", lambda _, values: values)
    chosen = config(opt_level="O0", batch_size=10, epochs=2)
    train(tmp_path / "enough", chosen)
    seen = run_short(tmp_path / "short", chosen, 3, monkeypatch)
    assert seen[:10] == [10, 5, 2, 3, 2, 3, 2, 3, 2, 3]
    assert max(seen[2:]) == 3
    messages = [record.message for record in caplog.records]
    assert messages == [
        "kit: epoch 1, step 1: out of memory; going on with 5 at once",
        "kit: epoch 1, step 1: out of memory; going on with 3 at once",
    ]
    expected, _ = load_weights(tmp_path / "enough" / "epoch2.safetensors")
    found, _ = load_weights(tmp_path / "short" / "epoch2.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    _, metadata = load_weights(tmp_path / "short" / "checkpoint.safetensors")
    assert metadata["progress"]["at_once"] == 3  # a second call does not run out again


@pytest.mark.parametrize("opt_level", ["O0", "O1", "O2"])
def test_a_shortage_amid_the_backward_pass_leaves_no_gradients(opt_level):
    """Under O2 the half-precision weights hold some that no master has got yet."""
    inputs, labels = map(torch.from_numpy, make_data())
    batch = {"values": inputs, "labels": labels}
    shortages = [False, True]  # in the second part of the first try

    def run_short(gradient):
        if shortages and shortages.pop(0):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return gradient

    losses, models = [], []
    for at_once, short in ((50, True), (13, False)):
        torch.manual_seed(0)
        model = Net(config()).eval()  # without dropout
        optimizer = make_optimizer(model, config(learning_rate=1e-2))
        amp.initialize(model, optimizer, opt_level)
        if short:
            shortages[:] = [False, True]
            model.layers[0].weight.register_hook(run_short)  # it comes last
            at_once = 25
        stepper = Stepper(model, optimizer, compute_net_loss, at_once)
        losses.append([stepper.take(batch).read()[0] for _ in range(3)])
        assert stepper.at_once == 13
        models.append(amp.list_masters(model, optimizer))
    assert losses[0] == losses[1]
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name])


def test_a_card_that_cannot_hold_one_example_is_told_so(tmp_path, monkeypatch):
    sentence = r"epoch 1, step 1: the card cannot hold the model with one example; smaller images"
    with pytest.raises(TrainingError, match=sentence):
        run_short(tmp_path, config(), 0, monkeypatch)


def test_a_step_in_which_no_file_could_be_read_changes_nothing():
    model = Net(config())
    optimizer = make_optimizer(model, model.config)
    amp.initialize(model, optimizer, "O1")
    inputs, labels = map(torch.from_numpy, make_data())

    stepper = Stepper(model, optimizer, compute_net_loss, 50)
    assert stepper.take({"values": inputs, "labels": labels}) is not None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert stepper.take(None) is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def make_image_stepper(opt_level):
    """A step function's parts with a small ResNeXt: the stepper and a batch of six images."""
    numbers, images = np.random.default_rng(0), (6, 64, 64, 3)
    batch = {
        "image": torch.from_numpy(numbers.integers(0, 256, images, dtype=np.uint8)),
        "parts": torch.arange(6)[:, None],
        "labels": torch.from_numpy(numbers.integers(0, 2, (6, 6)).astype(np.float32)),
    }
    options = {"architecture_options": SMALL_RESNEXT, "architecture": "resnext50_32x4d"}
    chosen = ClassifierConfig(image_size=64, weights="", opt_level=opt_level, **options)
    torch.manual_seed(0)
    model = Classifier(chosen).train()
    optimizer = make_optimizer(model, chosen)
    amp.initialize(model, optimizer, opt_level)
    return Stepper(model, optimizer, compute_image_loss, 6), batch


@pytest.mark.parametrize(("opt_level", "tolerance"), [("O0", 1e-4), ("O2", 5e-4)])
def test_another_layout_of_the_weights_steps_alike(opt_level, tolerance):
    """A fused optimizer takes masters and state only in the layout of the gradients."""
    steppers = []
    for way in (Tuning(), Tuning(channels_last=False)):
        stepper, batch = make_image_stepper(opt_level)
        stepper.take(batch)
        stepper.set_way(way, batch)
        steppers.append(stepper)
    weight = next(
        value for value in list_parameters(steppers[1].optimizer) if value.shape[1:] == (3, 7, 7)
    )
    assert weight.is_contiguous()
    assert steppers[1].optimizer.state[weight]["exp_avg"].is_contiguous()
    for _ in range(2):
        losses = [stepper.take(batch).read()[0] for stepper in steppers]
        np.testing.assert_allclose(*losses, rtol=1e-4 if opt_level == "O0" else 0.01)
    first, second = (amp.list_masters(each.model, each.optimizer) for each in steppers)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=tolerance, rtol=0.01)


def test_a_resumed_run_tries_what_this_card_holds_before_it_times_it(monkeypatch, caplog):
    """`at_once` may be of a larger card; a way whose trial fails would be passed over."""
    stepper, batch = make_image_stepper("O0")
    compute = stepper.compute_loss

    def compute_short(model, part):
        if len(part["labels"]) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return compute(model, part)

    stepper.compute_loss = compute_short
    before = {name: value.clone() for name, value in stepper.model.state_dict().items()}
    assert stepper.choose_way(batch, 10**9, "epoch 2, step 1") == {}  # a CPU has no choice
    monkeypatch.setattr(step, "is_tunable", lambda model, device: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    noted = stepper.choose_way(batch, 1, "epoch 2, step 1")
    assert (noted["card"], noted["way"], noted["at_once"]) == ("card", "channels last", 3)
    assert list(noted["milliseconds"]) == ["channels last"]
    assert [record.message for record in caplog.records] == [
        "kit: epoch 2, step 1: out of memory; going on with 3 at once"
    ]
    assert all(value.grad is None for value in stepper.model.parameters())
    for name, value in stepper.model.state_dict().items():
        assert torch.equal(value, before[name]), name
