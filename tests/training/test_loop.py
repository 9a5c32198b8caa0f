import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from kit.lstm import LSTMConfig, SequenceLSTM
from kit.training import loop as training
from kit.training.checkpoints import TrainingError, load_weights
from kit.training.config import TrainingConfig, learning_rate_at
from kit.training.loop import OutOfTime, Task, fit, shuffle_batches, weighted_loss


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.2), nn.Linear(16, 6))

    def forward(self, values):
        return self.layers(values)


def make_data():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 5)).astype(np.float32)
    return inputs, (inputs @ rng.normal(size=(5, 6)) > 0).astype(np.float32)


def train(directory, config, stop_after=None, poison=None, **options):
    """Fit the net; `stop_after` batches an error as of a killed process breaks it off."""
    torch.manual_seed(config.seed)
    inputs, labels = make_data()
    served = itertools.count(1)

    def make_batches(epoch, batches):
        for batch in batches:
            if next(served) == stop_after:
                raise KeyboardInterrupt
            values = torch.from_numpy(inputs[batch].copy())
            if poison == (epoch, int(batch[0])):
                values[0, 0] = torch.nan
            yield {
                "values": values,
                "labels": torch.from_numpy(labels[batch]),
                "names": [f"slice{number}" for number in batch],
            }

    def compute_loss(model, batch):
        return weighted_loss(model(batch["values"]), batch["labels"])

    net = Net(config)
    history = fit(net, config, Task(50, make_batches, compute_loss), directory, **options)
    return net, history


def config(**changes):
    return TrainingConfig(**{"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, **changes})


def test_the_loss_is_the_published_formula():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 6), (torch.rand(9, 6) > 0.5).float()
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = (6 * bce(logits, labels) + bce(logits[:, 5], labels[:, 5])) / 7
    assert weighted_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_training_lowers_the_loss_and_leaves_weights_of_every_epoch(tmp_path):
    net, history = train(tmp_path, config(epochs=6, opt_level="O0"))
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert json.loads((tmp_path / "history.json").read_text()) == history
    weights, metadata = load_weights(tmp_path / "epoch6.safetensors")
    assert metadata["config"]["learning_rate"] == 1e-2
    assert metadata["epoch"] == 6
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("opt_level", ["O0", "O1", "O2", "O3"])
@pytest.mark.parametrize("stop_after", [1, 5, 9, 20])
def test_a_stopped_training_goes_on_to_the_same_bytes(tmp_path, opt_level, stop_after):
    chosen = config(opt_level=opt_level, schedule="one-cycle", optimizer="adamw")
    train(tmp_path / "whole", chosen)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", chosen, stop_after=stop_after, checkpoint_seconds=0)
    train(tmp_path / "stopped", chosen, checkpoint_seconds=0)
    for epoch in (1, 2, 3):
        name = f"epoch{epoch}.safetensors"
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "stopped" / name
        ).read_bytes()


def test_resuming_restores_scale_optimizer_and_position(tmp_path):
    chosen = config(opt_level="O1")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, chosen, stop_after=12, checkpoint_seconds=0)
    tensors, metadata = load_weights(tmp_path / "checkpoint.safetensors")
    assert metadata["progress"]["epoch"] == 2  # seven batches an epoch, eleven served
    assert metadata["progress"]["step"] == 4
    assert metadata["amp"]["scale"] == 2.0**16
    assert tensors["optimizer.0.step"].item() == 11


def test_a_finished_training_has_nothing_to_do(tmp_path):
    _, history = train(tmp_path, config())
    before = (tmp_path / "epoch3.safetensors").stat().st_mtime_ns
    assert train(tmp_path, config())[1] == history
    assert (tmp_path / "epoch3.safetensors").stat().st_mtime_ns == before


def test_the_time_budget_stops_it_saved(tmp_path):
    with pytest.raises(OutOfTime, match="stopped in time after step 1"):
        train(tmp_path, config(), deadline=0.0)
    assert load_weights(tmp_path / "checkpoint.safetensors")[1]["progress"]["step"] == 1
    train(tmp_path, config())
    train(tmp_path / "whole", config())
    name = "epoch3.safetensors"
    assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_nan_stops_it_naming_epoch_step_and_batch(tmp_path):
    poisoned = int(shuffle_batches(50, 8, 0, 2)[3][0])
    with pytest.raises(TrainingError, match=rf"epoch 2, step 4: the loss is nan.*slice{poisoned}"):
        train(tmp_path, config(), poison=(2, poisoned))


def train_with_nan_gradients(directory, config):
    """The loss is finite, its gradient is not: the derivative of a square root at zero."""
    inputs, labels = map(torch.from_numpy, make_data())

    def make_batches(epoch, batches):
        for batch in batches:
            yield {"values": inputs[batch], "labels": labels[batch]}

    def compute_loss(model, batch):
        nothing = sum((value.sum() * 0).abs().sqrt() for value in model.parameters())
        return weighted_loss(model(batch["values"]), batch["labels"]) + nothing

    fit(Net(config), config, Task(len(inputs), make_batches, compute_loss), directory)


def test_weights_that_become_nan_stop_it_naming_them(tmp_path):
    with pytest.raises(
        TrainingError, match=r"epoch 1: the weights layers\.0\.weight are not finite"
    ):
        train_with_nan_gradients(tmp_path, config(batch_size=50, opt_level="O0"))
    assert not list(tmp_path.glob("epoch*"))


def test_gradients_that_stay_nan_stop_it_where_the_scaler_would_go_on(tmp_path):
    with pytest.raises(TrainingError, match=r"epoch 1, step 30: gradients stay NaN or infinite"):
        train_with_nan_gradients(tmp_path, config(batch_size=1, opt_level="O1"))


def test_a_checkpoint_that_is_cut_short_is_refused_by_name(tmp_path):
    train(tmp_path, config())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: not a weights file"):
        train(tmp_path, config())


def test_batches_hold_every_example_once_and_follow_from_seed_and_epoch():
    batches = shuffle_batches(50, 8, 3, 1)
    assert sorted(np.concatenate(batches)) == list(range(50))
    assert [len(batch) for batch in batches] == [8] * 6 + [2]
    again, other = shuffle_batches(50, 8, 3, 1), shuffle_batches(50, 8, 3, 2)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any((a != b).any() for a, b in zip(batches, other, strict=True))


def test_learning_rates_by_hand():
    exponential = config(schedule="exponential", learning_rate=1.0)
    assert learning_rate_at(exponential, 3, 5, 10) == pytest.approx(0.95**2)
    assert learning_rate_at(config(learning_rate=0.5), 3, 5, 10) == 0.5
    cycle = config(schedule="one-cycle", learning_rate=1.0, epochs=1)
    steps = 101
    assert learning_rate_at(cycle, 1, 0, steps) == pytest.approx(0.04)
    assert learning_rate_at(cycle, 1, 30, steps) == pytest.approx(1.0)
    assert learning_rate_at(cycle, 1, 65, steps) == pytest.approx(0.5)
    assert learning_rate_at(cycle, 1, 100, steps) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="'cosine' is none of"):
        learning_rate_at(config(schedule="cosine"), 1, 0, 1)


def test_biases_are_not_decayed():
    optimizer = training.make_optimizer(Net(config()), config(weight_decay=0.1))
    decays = {
        value.ndim: g["weight_decay"] for g in optimizer.param_groups for value in g["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}


TWO_PROCESSES = """
import sys, torch
from pathlib import Path
sys.path[:0] = ["tests", "tests/training"]
from test_loop import Net, make_data, config
from kit.training.distributed import join_processes
from kit.training.loop import Task, fit, weighted_loss
torch.manual_seed(0)
inputs, labels = map(torch.from_numpy, make_data())
def make_batches(epoch, batches):
    for batch in batches:
        yield {"values": inputs[batch], "labels": labels[batch]}
chosen = config(opt_level="O0", batch_size=10)
net = Net(chosen)
net.layers[1].p = 0.0
task = Task(50, make_batches, lambda m, b: weighted_loss(m(b["values"]), b["labels"]))
with join_processes():
    fit(net, chosen, task, Path(sys.argv[1]))
threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
assert not {name for name in threads if "gloo" in name}, threads
"""


def test_two_processes_train_to_the_weights_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    one = [sys.executable, str(script), str(tmp_path / "one")]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    two = [sys.executable, *launcher, str(script), str(tmp_path / "two")]
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",  # gloo, also on a machine with GPUs
        "PATH": "/usr/bin:/bin",
    }
    for command in (one, two):
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
    alone, _ = load_weights(tmp_path / "one" / "epoch3.safetensors")
    together, _ = load_weights(tmp_path / "two" / "epoch3.safetensors")
    for name, value in alone.items():
        assert torch.allclose(value, together[name], atol=1e-5)


def test_the_lstm_refuses_an_embedding_that_is_not_finite(tmp_path):
    from kit.lstm import train_lstm
    from kit.sequences import SeriesDataset

    pd = pytest.importorskip("pandas")
    embeddings = np.ones((6, 4), np.float16)
    embeddings[4, 1] = np.inf
    table = pd.DataFrame({"series": list("aaabbb")})
    series = SeriesDataset(embeddings, table, np.arange(6))
    chosen = LSTMConfig(embedding_size=4, hidden_size=4, batch_size=1, epochs=1)
    with pytest.raises(TrainingError, match=r"epoch 1, step \d: the loss is nan; in the batch: b"):
        train_lstm(series, chosen, tmp_path, torch.device("cpu"))
    assert SequenceLSTM(chosen).config == chosen


def test_tensorboard_gets_loss_rate_and_scale_of_every_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = train(tmp_path, config(schedule="exponential"))
    found = {}
    for path in sorted((tmp_path / "events").iterdir()):
        events = EventAccumulator(str(path)).Reload()
        for name in ("loss", "learning_rate", "loss_scale"):
            found.setdefault(name, []).extend(event.value for event in events.Scalars(name))
    for name, values in found.items():
        assert values == pytest.approx([entry[name] for entry in history])
