import json

import numpy as np
import pytest
import torch
from small_training import Net, config, make_data, train
from torch import nn

from kit.lstm import LSTMConfig
from kit.training.checkpoints import TrainingError, load_weights
from kit.training.loop import OutOfTime, Task, fit, shuffle_batches, weighted_loss


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
        train(tmp_path, config(opt_level="O0"), poison=(2, poisoned), checkpoint_seconds=0)
    _, metadata = load_weights(tmp_path / "checkpoint.safetensors")
    assert metadata["progress"]["step"] == 3  # what the NaN has spoiled is not saved


@pytest.mark.parametrize("opt_level", ["O1", "O2"])
def test_one_loss_that_is_not_finite_costs_its_step_alone(tmp_path, opt_level, caplog):
    poisoned = int(shuffle_batches(50, 8, 0, 2)[3][0])
    _, history = train(tmp_path, config(opt_level=opt_level), poison=(2, poisoned))
    assert [entry["skipped_steps"] for entry in history] == [0, 1, 1]
    assert [entry["loss_scale"] for entry in history] == [2.0**16, 2.0**15, 2.0**15]
    assert history[2]["loss"] < history[1]["loss"] < history[0]["loss"]
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(
        f"kit: epoch 2, step 4: the loss is nan; in the batch: slice{poisoned}"
    )
    assert message.endswith("the step is skipped")


@pytest.mark.parametrize("opt_level", ["O1", "O2"])
def test_thirty_losses_that_are_not_finite_stop_it_naming_the_batch(tmp_path, opt_level):
    chosen = config(opt_level=opt_level, batch_size=1)
    name = f"slice{shuffle_batches(50, 1, 0, 1)[30][0]}"
    fault = rf"epoch 1, step 31: the loss is nan; in the batch: {name}$"
    with pytest.raises(TrainingError, match=fault):
        train(tmp_path, chosen, poison_after=1)
    with pytest.raises(TrainingError, match=fault):  # from the beginning: nothing was saved
        train(tmp_path, chosen, poison_after=1)
    train(tmp_path, chosen)  # and nothing is left of it


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


def test_batches_hold_every_example_once_and_follow_from_seed_and_epoch():
    batches = shuffle_batches(50, 8, 3, 1)
    assert sorted(np.concatenate(batches)) == list(range(50))
    assert [len(batch) for batch in batches] == [8] * 6 + [2]
    again, other = shuffle_batches(50, 8, 3, 1), shuffle_batches(50, 8, 3, 2)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any((a != b).any() for a, b in zip(batches, other, strict=True))


@pytest.mark.parametrize(
    ("opt_level", "fault"),
    [("O0", r"epoch 1, step \d: the loss is nan; in the batch: b"),
     ("O1", r"epoch 15, step \d: the loss is nan; in the batch: [ab]")],
)  # fmt: skip
def test_the_lstm_refuses_an_embedding_that_is_not_finite(tmp_path, opt_level, fault):
    from kit.lstm import train_lstm
    from kit.sequences import SeriesDataset

    pd = pytest.importorskip("pandas")
    embeddings = np.ones((6, 4), np.float16)
    embeddings[4 if opt_level == "O0" else slice(None), 1] = np.inf
    table = pd.DataFrame({"series": list("aaabbb")})
    series = SeriesDataset(embeddings, table, np.arange(6))
    sizes = {"embedding_size": 4, "hidden_size": 4, "batch_size": 1, "epochs": 20}
    chosen = LSTMConfig(**sizes, opt_level=opt_level)
    with pytest.raises(TrainingError, match=fault):
        train_lstm(series, chosen, tmp_path, torch.device("cpu"))


def test_o2_saves_the_master_weights(tmp_path):
    net, _ = train(tmp_path, config(opt_level="O2", learning_rate=1e-4))
    weights, _ = load_weights(tmp_path / "epoch3.safetensors")
    rounded = {name: value for name, value in net.state_dict().items()}
    assert {value.dtype for value in rounded.values()} == {torch.bfloat16}
    for name, value in weights.items():
        assert value.dtype == torch.float32
        assert torch.equal(value.bfloat16(), rounded[name])
    checkpoint, _ = load_weights(tmp_path / "checkpoint.safetensors")
    assert torch.equal(weights["layers.0.weight"], checkpoint["master.0"])
    assert not torch.equal(weights["layers.0.weight"], checkpoint["model.layers.0.weight"].float())
