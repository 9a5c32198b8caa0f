"""What a GPU computes equals what the CPU computes. (The LSTM: tests/lstm/test_model.py.)"""

import numpy as np
import pytest
import torch
from torch import nn

from kit.classifier import Classifier, checkpoint_activations
from kit.competition import LABELS
from kit.embeddings import extract_embeddings
from kit.lstm import LSTMConfig, SequenceLSTM, compute_loss, predict_logits, train_lstm
from kit.recipes import SMALL_RESNEXT
from kit.sequences import SeriesDataset, collate_series
from kit.training import amp, tuning
from kit.training.checkpoints import load_weights, save_weights
from kit.training.config import ClassifierConfig, TrainingConfig
from kit.training.inference import fuse_normalization, move_batch
from kit.training.loop import Task, fit, weighted_loss
from kit.training.optimizer import make_optimizer
from kit.training.step import Stepper

pytestmark = pytest.mark.gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def make_classifier(**options) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(
        architecture="resnext50_32x4d",
        architecture_options=SMALL_RESNEXT,
        image_size=64,
        crop=False,
        **options,
    )
    return Classifier(config).eval()


def make_images(count: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 255, (count, 64, 64, 3), dtype=np.uint8))


def measure_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference as a share of that of `expected`."""
    return float((found.detach().cpu().double() - expected.double()).norm() / expected.norm())


def test_the_classifier_gives_the_same_logits():
    model, images = make_classifier(), make_images(8)
    with torch.inference_mode():
        expected = model(images)
        model.to(GPU)
        assert measure_error(model(images.to(GPU)), expected) < 2e-3  # convolutions use TF32
        with amp.autocast(GPU, "O1"):
            assert measure_error(model(images.to(GPU)), expected) < 1e-2
        model.backbone = fuse_normalization(model.backbone)
        assert measure_error(model(images.to(GPU)), expected) < 2e-3


@pytest.mark.parametrize("opt_level", ["O1", "O2"])
def test_a_step_lowers_the_loss_as_on_the_cpu(opt_level):
    def take_steps(device: torch.device, opt_level: str) -> tuple[list[float], nn.Module]:
        model = make_classifier(learning_rate=1e-3).to(device).train()
        optimizer = make_optimizer(model, model.config)
        amp.initialize(model, optimizer, opt_level)
        labels = (torch.arange(48).reshape(8, 6) % 3 == 0).float().to(device)
        batch = {"image": make_images(8).to(device), "labels": labels}

        def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
            return weighted_loss(model(batch["image"]), batch["labels"])

        stepper = Stepper(model, optimizer, compute_loss, 8)
        losses = [stepper.take(batch).read()[0] for _ in range(8)]
        assert optimizer.amp.skipped < 4  # float16 overflows until the scale has come down
        return losses, model

    exact, _ = take_steps(CPU, "O0")
    found, model = take_steps(GPU, opt_level)
    assert found[0] == pytest.approx(exact[0], rel=0.02)
    assert found[-1] < 0.9 * found[0]
    kinds = {parameter.dtype for parameter in model.parameters()}
    assert kinds == {torch.float32} if opt_level == "O1" else torch.float16 in kinds


def make_step_batch(count: int) -> dict:
    labels = (torch.arange(count * 6).reshape(count, 6) % 3 == 0).float()
    return {"image": make_images(count), "labels": labels}


def compute_image_loss(model: nn.Module, batch: dict) -> torch.Tensor:
    batch = move_batch(batch, GPU)
    return weighted_loss(model(batch["image"]), batch["labels"])


def make_stepper(at_once: int, opt_level: str = "O1", **options) -> Stepper:
    model = make_classifier(learning_rate=1e-3, **options).to(GPU).train()
    optimizer = make_optimizer(model, model.config)
    half = amp.choose_half(GPU, model.config.precision)
    amp.initialize(model, optimizer, opt_level, half)
    return Stepper(model, optimizer, compute_image_loss, at_once)


@pytest.fixture
def no_waiting():
    """Every wait for the device raises, except for the reading of a step that is over."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("opt_level", ["O0", "O1", "O2"])
def test_no_step_of_the_sequence_model_waits_for_the_device(opt_level, no_waiting):
    torch.manual_seed(0)
    config = LSTMConfig(embedding_size=32, hidden_size=64)
    model = SequenceLSTM(config).to(GPU).train()
    optimizer = make_optimizer(model, config)
    amp.initialize(model, optimizer, opt_level)
    stepper = Stepper(model, optimizer, compute_loss, 4)
    rng = np.random.default_rng(0)
    items = [
        {"emb": rng.normal(size=(length, 32)).astype(np.float16), "embidx": np.arange(length),
         "labels": np.zeros((length, 6), np.float32)}
        for length in (3, 30, 41, 7)
    ]  # fmt: skip
    batch = {name: value.pin_memory() for name, value in collate_series(items).items()}
    before = stepper.take(batch)  # the first step makes what the later ones keep
    no_waiting()
    for _ in range(5):
        outcome = stepper.take(batch)
        assert before.read()[0] > 0
        before = outcome


def test_no_step_of_the_classifier_waits_for_the_device(no_waiting):
    stepper, batch = make_stepper(8), make_step_batch(8)
    batch = {name: value.pin_memory() for name, value in batch.items()}
    before = stepper.take(batch)
    no_waiting()
    for _ in range(3):
        outcome = stepper.take(batch)
        before.read()
        before = outcome


def test_the_examples_at_once_are_what_the_free_memory_holds(monkeypatch):
    """What is reckoned for half a gigabyte stays within it, and fills more than a third of it."""
    room = 2**29
    stepper = make_stepper(4096)
    monkeypatch.setattr(Stepper, "_count_free", lambda self: room)
    before = {name: value.clone() for name, value in stepper.model.state_dict().items()}
    stepper.fit_memory(make_step_batch(8))
    for name, value in stepper.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert 4 < stepper.at_once < 4096
    torch.cuda.reset_peak_memory_stats(GPU)
    held = torch.cuda.memory_allocated(GPU)
    stepper.take(make_step_batch(stepper.at_once))
    assert room / 3 < torch.cuda.max_memory_allocated(GPU) - held < room


def test_a_card_whose_memory_runs_out_goes_on_with_smaller_parts(caplog):
    whole = make_stepper(1024, "O0")
    torch.cuda.empty_cache()  # what earlier tests have left could be used again
    held, total = torch.cuda.memory_reserved(GPU), torch.cuda.mem_get_info(GPU)[1]
    torch.cuda.set_per_process_memory_fraction((held + 2**27) / total, GPU)
    try:
        outcome = whole.take(make_step_batch(1024))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert np.isfinite(outcome.read()[0])
    assert whole.at_once < 1024
    assert "out of memory; going on with" in caplog.text


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_either_half_precision_lowers_the_loss(precision):
    if precision == "bfloat16" and torch.cuda.get_device_capability(GPU) < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    stepper, batch = make_stepper(8, precision=precision), make_step_batch(8)
    losses = [stepper.take(batch).read()[0] for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def test_recomputed_activations_take_less_memory():
    peaks = []
    for recompute in (False, True):
        stepper, batch = make_stepper(64), make_step_batch(64)
        if recompute:
            checkpoint_activations(stepper.model)
        stepper.take(batch)
        torch.cuda.reset_peak_memory_stats(GPU)
        held = torch.cuda.memory_allocated(GPU)
        stepper.take(batch).read()
        peaks.append(torch.cuda.max_memory_allocated(GPU) - held)
    assert peaks[1] < 0.9 * peaks[0]  # measured on an H200: 0.82, of so small a model


def test_the_sequence_model_trains_to_the_losses_of_the_cpu(tmp_path):
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 24)
    table = pd.DataFrame({"series": np.repeat([f"s{number}" for number in range(24)], lengths)})
    table[list(LABELS)] = (rng.random((len(table), 6)) < 0.3).astype(np.float32)
    embeddings = rng.normal(size=(len(table), 16)).astype(np.float16)
    series = SeriesDataset(embeddings, table, np.arange(len(table)))
    config = LSTMConfig(embedding_size=16, hidden_size=32, epochs=3, learning_rate=1e-3)
    losses = [
        [epoch["loss"] for epoch in train_lstm(series, config, tmp_path / device.type, device)]
        for device in (CPU, GPU)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_a_stopped_training_continues_to_the_same_losses(tmp_path):
    class Net(nn.Module):
        def __init__(self, config: TrainingConfig):
            super().__init__()
            self.config = config
            self.layers = nn.Sequential(nn.Linear(5, 32), nn.Dropout(0.2), nn.Linear(32, 6))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.layers(values)

    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(64, 5)).astype(np.float32))
    labels = (inputs @ torch.ones(5, 6) > 0).float()

    def train(name: str, stop_after: int | None = None) -> list[dict]:
        config = TrainingConfig(epochs=3, batch_size=8, learning_rate=1e-2)
        served = 0

        def make_batches(epoch: int, batches: list[np.ndarray]):
            nonlocal served
            for batch in batches:
                served += 1
                if served == stop_after:
                    raise KeyboardInterrupt
                yield {"values": inputs[batch], "labels": labels[batch]}

        def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
            batch = move_batch(batch, GPU)
            return weighted_loss(model(batch["values"]), batch["labels"])

        torch.manual_seed(0)
        net = Net(config).to(GPU)
        task = Task(len(inputs), make_batches, compute_loss)
        return fit(net, config, task, tmp_path / name, checkpoint_seconds=0)

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stop_after=12)
    stopped = train("stopped")
    for one, other in zip(whole, stopped, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    expected, _ = load_weights(tmp_path / "whole" / "epoch3.safetensors")
    found, _ = load_weights(tmp_path / "stopped" / "epoch3.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_a_series_gets_the_same_logits(packed):
    pd = pytest.importorskip("pandas")
    torch.manual_seed(0)
    config = LSTMConfig(embedding_size=16, hidden_size=32, packed=packed)
    embeddings = np.random.default_rng(0).normal(size=(30, 16)).astype(np.float16)
    table = pd.DataFrame({"series": ["a"] * 9 + ["b"] * 20 + ["c"]})
    series = SeriesDataset(embeddings, table, np.arange(30))
    model = SequenceLSTM(config)
    expected = predict_logits(model, series, CPU)
    found = predict_logits(model.to(GPU), series, GPU)
    np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("long", [False, True])
def test_a_small_store_holds_the_same_embeddings(tmp_path, monkeypatch, long):
    if long:  # as if it were: everything is tried and compiled
        monkeypatch.setattr(tuning, "WORTH_TRIALS", 0.0)
        monkeypatch.setattr(tuning, "WORTH_COMPILING", 0.0)
    pd = pytest.importorskip("pandas")
    from dicom_files import write_slice

    paths = [tmp_path / f"{number}.dcm" for number in range(6)]
    for number, path in enumerate(paths):
        stored = np.random.default_rng(number).integers(-1000, 1000, (64, 64), dtype=np.int16)
        write_slice(path, stored)
    names = [path.stem for path in paths]
    table = pd.DataFrame({"path": list(map(str, paths)), "SOPInstanceUID": names})
    save_weights(tmp_path / "epoch1.safetensors", make_classifier())
    stores = [
        extract_embeddings(table, tmp_path / "epoch1.safetensors", tmp_path / name, device, 0)
        for name, device in (("cpu", CPU), ("gpu", GPU))
    ]
    values = [np.asarray(store.embeddings, dtype=np.float64) for store in stores]
    assert np.abs(values[1] - values[0]).max() < 0.02 * np.abs(values[0]).max()
    np.testing.assert_allclose(stores[1].logits, stores[0].logits, atol=0.02)
    assert "speed" not in stores[0].provenance
    noted = stores[1].provenance["speed"]
    assert noted["card"] == torch.cuda.get_device_name(GPU)
    assert len(noted["milliseconds"]) == (5 if long else 1)
    assert noted["way"] in noted["milliseconds"]
    assert not torch.backends.cudnn.benchmark


def test_the_way_of_a_training_is_chosen_and_changes_nothing(monkeypatch):
    """All ways are tried, also compiled; a step of the chosen one is that of a plain model."""
    monkeypatch.setattr(tuning, "WORTH_TRIALS", 0.0)
    monkeypatch.setattr(tuning, "WORTH_COMPILING", 0.0)
    batch, steppers = make_step_batch(32), [make_stepper(32, "O0") for _ in range(2)]
    steppers[1].model.load_state_dict(steppers[0].model.state_dict())
    for stepper in steppers:
        stepper.take(batch).read()  # the optimizer has a state, as after a resume
    before = {name: value.clone() for name, value in steppers[1].model.state_dict().items()}
    noted = steppers[1].choose_way(batch, 10, "here")
    assert len(noted["milliseconds"]) == 5
    assert noted["way"] == min(noted["milliseconds"], key=noted["milliseconds"].get)
    for name, value in steppers[1].model.state_dict().items():
        assert torch.equal(value, before[name])
    for way in (tuning.Tuning(False), tuning.Tuning(True, True, compiled=True)):
        steppers[1].set_way(way, batch)
        losses = [stepper.take(batch).read()[0] for stepper in steppers]
        np.testing.assert_allclose(*losses, rtol=0.01)
