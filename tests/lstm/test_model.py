import numpy as np
import pytest
import torch
from conftest import golden

from kit.competition import LABELS
from kit.lstm import (
    LSTMConfig,
    SequenceLSTM,
    SpatialDropout,
    sequence_loss,
    train_lstm,
)
from kit.sequences import SeriesDataset
from kit.training import amp
from kit.training.checkpoints import load_weights
from kit.training.optimizer import make_optimizer


def load_published(**options):
    """The model with the golden weights, its embeddings (4, 12, 16), mask and labels."""
    values = golden("lstm")
    model = SequenceLSTM(LSTMConfig(embedding_size=16, hidden_size=16, **options)).eval()
    weights = {
        name.removeprefix("weights."): torch.tensor(values[name])
        for name in values.files
        if name.startswith("weights.")
    }
    model.load_state_dict(weights)
    return (
        model,
        torch.tensor(values["input"])[..., :16],
        torch.tensor(values["mask"]),
        torch.tensor(values["labels"]),
        values,
    )


def test_the_published_forward_gives_the_published_logits():
    model, embeddings, mask, labels, values = load_published(packed=False)
    logits = model(embeddings, mask)
    np.testing.assert_allclose(logits.detach(), values["logits_left_padded"], atol=1e-5)
    loss = sequence_loss(logits, labels, mask)
    assert loss.item() == pytest.approx(float(values["loss_left_padded"]), abs=1e-6)


def test_the_packed_forward_gives_what_each_series_gives_alone():
    model, embeddings, mask, _, values = load_published(packed=True)
    real = mask.bool().numpy()
    logits = model(embeddings, mask).detach().numpy()
    np.testing.assert_allclose(logits[real], values["logits_alone"][real], atol=1e-5)


def test_training_follows_the_published_losses():
    model, embeddings, mask, labels, values = load_published(
        learning_rate=1e-3, weight_decay=float(values_of("train.weight_decay")), opt_level="O0"
    )
    optimizer = make_optimizer(model, model.config)
    losses = []
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = float(values["train.lr"]) * float(values["train.gamma"]) ** epoch
        for series in range(4):
            real = mask[series].bool()
            alone = torch.ones(1, int(real.sum()))
            loss = sequence_loss(
                model(embeddings[series, real][None], alone), labels[series, real][None], alone
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(losses, values["train.losses"], atol=1e-5)


def values_of(name):
    return golden("lstm")[name]


@pytest.mark.parametrize(("embedding", "hidden"), [(32, 32), (24, 16)])
def test_a_series_gives_the_same_probabilities_alone_and_in_any_batch(embedding, hidden):
    torch.manual_seed(1)
    model = SequenceLSTM(LSTMConfig(embedding_size=embedding, hidden_size=hidden)).eval()
    series = [torch.randn(length, embedding) for length in (1, 7, 33, 60, 20, 2)]
    alone = [model(item[None], torch.ones(1, len(item)))[0].sigmoid() for item in series]
    for order in ([0, 1, 2, 3, 4, 5], [3, 0, 5, 2, 4, 1], [1, 5], [4, 2, 0]):
        for front in (True, False):
            longest = max(len(series[number]) for number in order)
            batch = torch.randn(len(order), longest, embedding)  # what is padded must not matter
            mask = torch.zeros(len(order), longest)
            for row, number in enumerate(order):
                length = len(series[number])
                place = slice(longest - length, longest) if front else slice(0, length)
                batch[row, place], mask[row, place] = series[number], 1
            together = model(batch, mask).sigmoid()
            for row, number in enumerate(order):
                assert (together[row, mask[row].bool()] - alone[number]).abs().max() < 1e-5


def test_the_skip_is_projected_only_where_the_sizes_differ():
    assert not hasattr(SequenceLSTM(LSTMConfig(embedding_size=8, hidden_size=8)), "skip")
    model = SequenceLSTM(LSTMConfig(embedding_size=8, hidden_size=6))
    assert model.skip.weight.shape == (12, 16)


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = SequenceLSTM(LSTMConfig())
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(268.5e6, rel=1e-3)


def test_without_deltas_the_embedding_alone_goes_in():
    model = SequenceLSTM(LSTMConfig(embedding_size=8, hidden_size=6, deltas=False))
    assert model.lstm1.weight_ih_l0.shape == (24, 8)
    assert model(torch.randn(2, 5, 8), torch.ones(2, 5)).shape == (2, 5, 6)


def test_spatial_dropout_drops_whole_channels():
    torch.manual_seed(0)
    dropout = SpatialDropout(0.5)
    values = dropout(torch.ones(4, 9, 100))
    per_channel = values.sum(dim=1)  # 9 slices: nothing or everything, doubled
    assert set(per_channel.unique().tolist()) == {0.0, 18.0}
    assert 0.4 < (per_channel == 0).float().mean() < 0.6
    assert torch.equal(dropout.eval()(torch.ones(1, 2, 3)), torch.ones(1, 2, 3))


def test_standardized_embeddings_are_scaled_and_padding_stays_zero():
    torch.manual_seed(0)
    config = LSTMConfig(embedding_size=4, hidden_size=4, standardize=True)
    model = SequenceLSTM(config).eval()
    model.embedding_mean += 3
    model.embedding_scale *= 0.5
    plain = SequenceLSTM(LSTMConfig(embedding_size=4, hidden_size=4)).eval()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("embedding_")}
    )
    embeddings, mask = torch.randn(1, 6, 4), torch.ones(1, 6)
    assert torch.allclose(model(embeddings, mask), plain((embeddings - 3) / 2, mask))


def test_the_loss_weighs_any_twice():
    logits = torch.zeros(1, 2, 6)
    logits[0, 0] = torch.tensor([0.0, 0, 0, 0, 0, 2])
    labels = torch.tensor([[[0.0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]]])
    any_loss = np.log1p(np.exp(-2.0))  # of the one real slice
    expected = (5 * np.log(2) + 2 * any_loss) / 7
    loss = sequence_loss(logits, labels, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def train_sequences(opt_level):
    """The losses of forty steps on four series of different lengths."""
    torch.manual_seed(0)
    config = LSTMConfig(embedding_size=8, hidden_size=12, learning_rate=3e-3)
    model = SequenceLSTM(config)
    model, optimizer = amp.initialize(model, make_optimizer(model, config), opt_level)
    embeddings, mask = torch.randn(4, 9, 8), torch.arange(9) >= torch.tensor([[0], [4], [8], [2]])
    labels = (embeddings[..., :6] > 0.5).float()
    losses = []
    for _ in range(40):
        loss = sequence_loss(model(embeddings, mask), labels, mask)
        optimizer.zero_grad()
        with amp.scale_loss(loss, optimizer) as scaled:
            scaled.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_opt_level_trains_the_sequence_model():
    single = train_sequences("O0")
    assert single[-1] < single[0] / 2
    for opt_level in ("O1", "O2"):
        assert sum(train_sequences(opt_level)) == pytest.approx(sum(single), rel=0.05)
    rough = train_sequences("O3")
    assert rough[-1] < rough[0] * 0.7


@pytest.mark.parametrize(("weight_decay", "share"), [(0.0, (0.9, 1.5)), (0.01, (0.0, 0.5))])
def test_the_default_keeps_the_norm_of_the_weights(weight_decay, share, tmp_path):
    """Adam adds weight decay to the gradient: 0.01, more than most gradients, eats the weights."""
    pd = pytest.importorskip("pandas")
    assert LSTMConfig().weight_decay == 0.0
    sizes = {"embedding_size": 24, "hidden_size": 24, "epochs": 60, "learning_rate": 1e-3}
    chosen = LSTMConfig(**sizes, schedule="constant", weight_decay=weight_decay, opt_level="O0")
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(200, 24)).astype(np.float32)
    table = pd.DataFrame({"series": np.repeat(np.arange(20).astype(str), 10)})
    table[list(LABELS)] = (rng.random((200, 6)) < 0.1).astype(np.float32)
    series = SeriesDataset(embeddings, table, np.arange(200))
    train_lstm(series, chosen, tmp_path, torch.device("cpu"))  # 300 steps
    torch.manual_seed(0)
    before, (after, _) = SequenceLSTM(chosen), load_weights(tmp_path / "epoch60.safetensors")
    names = [name for name, value in before.named_parameters() if value.ndim == 2]
    norms = [
        torch.cat([values[name].flatten() for name in names]).norm().item()
        for values in (before.state_dict(), after)
    ]
    assert share[0] < norms[1] / norms[0] < share[1]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("opt_level", ["O1", "O2"])
@pytest.mark.parametrize("packed", [True, False])
def test_half_precision_stays_near_float32(packed, opt_level, device):
    torch.manual_seed(0)
    model = SequenceLSTM(LSTMConfig(embedding_size=8, hidden_size=12, packed=packed))
    embeddings, mask = torch.randn(4, 9, 8), torch.arange(9) >= torch.tensor([[0], [4], [8], [2]])
    expected = model(embeddings, mask)[mask]
    model, _ = amp.initialize(model.to(device), None, opt_level)
    found = model(embeddings.to(device), mask.to(device)).cpu()[mask]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
