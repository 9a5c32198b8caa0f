"""The masked bidirectional LSTM over a series of slice embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from kit.competition import LABELS
from kit.sequences import (
    SeriesDataset,
    add_deltas,
    batch_by_length,
    collate_series,
    read_rows,
)
from kit.training.checkpoints import TrainingError, fill_model, load_trained
from kit.training.config import LSTMConfig
from kit.training.inference import predict
from kit.training.loop import Task, fit, seed_random, weighted_loss


class SequenceLSTM(nn.Module):
    """Logits for every slice of a series from the embeddings of all of them.

    hidden = h1 + h2 + relu(linear1(h1)) + relu(linear2(h2)) + [e, e], with h1 and h2 the outputs
    of the two layers; [e, e] is projected (`skip`) where the hidden size differs from the
    embedding's. State-dict names are those of the reference implementation.
    """

    embedding_mean: torch.Tensor
    embedding_scale: torch.Tensor

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.config = config
        embedding, hidden = config.embedding_size, config.hidden_size
        inputs = embedding * 3 if config.deltas else embedding
        self.embedding_dropout = SpatialDropout(config.embedding_dropout)
        self.lstm1 = nn.LSTM(inputs, hidden, bidirectional=True, batch_first=True)
        self.lstm2 = nn.LSTM(hidden * 2, hidden, bidirectional=True, batch_first=True)
        self.linear1 = nn.Linear(hidden * 2, hidden * 2)
        self.linear2 = nn.Linear(hidden * 2, hidden * 2)
        self.linear = nn.Linear(hidden * 2, len(LABELS))
        if hidden != embedding:
            self.skip = nn.Linear(embedding * 2, hidden * 2, bias=False)
        if config.standardize:
            self.register_buffer("embedding_mean", torch.zeros(embedding))
            self.register_buffer("embedding_scale", torch.ones(embedding))

    def fit_standardization(self, embeddings, rows: np.ndarray) -> None:
        """Set mean and scale of the channels from `rows` of (N, E) embeddings, read in pieces."""
        total = np.zeros((2, self.config.embedding_size))
        for piece in np.array_split(np.sort(rows), max(1, len(rows) // 4096)):
            values = read_rows(embeddings, piece).astype(np.float64)
            total += values.sum(axis=0), (values**2).sum(axis=0)
        mean, square = total / len(rows)
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        self.embedding_mean.copy_(torch.from_numpy(mean))
        self.embedding_scale.copy_(torch.from_numpy(1 / np.maximum(deviation, 1e-3)))

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, T, E) and mask (B, T), True at real slices → logits (B, T, 6).

        With `packed` the logits of a series do not depend on the batch it is in, and those of
        padded positions mean nothing.
        """
        mask = mask.bool()
        embeddings = embeddings.to(self.linear.weight.dtype)
        if self.config.standardize:
            embeddings = (embeddings - self.embedding_mean) * self.embedding_scale
            embeddings = embeddings * mask[..., None]
        embeddings = self.embedding_dropout(embeddings)
        inputs = add_deltas(embeddings, mask) if self.config.deltas else embeddings
        run_layer = run_packed if self.config.packed else run_padded
        hidden1 = run_layer(self.lstm1, inputs, mask)  # (B, T, 2H)
        hidden2 = run_layer(self.lstm2, hidden1, mask)
        doubled = torch.cat([embeddings, embeddings], dim=-1)
        hidden = (
            hidden1
            + hidden2
            + self.linear1(hidden1).relu()
            + self.linear2(hidden2).relu()
            + (self.skip(doubled) if hasattr(self, "skip") else doubled)
        )
        return self.linear(hidden)


def run_packed(lstm: nn.LSTM, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a layer over the real slices alone: (B, T, D), mask (B, T) → (B, T, 2H), zeros elsewhere.

    The padding may be anywhere in a series; each series needs at least one real slice.
    """
    positions = torch.arange(mask.numel()).view(mask.shape)
    series = [row[real] for row, real in zip(positions, mask.cpu(), strict=True)]
    order = pack_sequence(sorted(series, key=len, reverse=True))
    rows = order.data.to(inputs.device)
    real = inputs.flatten(0, 1).index_select(0, rows)
    hidden = _call_lstm(lstm, PackedSequence(real, order.batch_sizes)).data
    outputs = hidden.new_zeros(mask.numel(), hidden.shape[1]).index_copy(0, rows, hidden)
    return outputs.view(*mask.shape, -1)


def run_padded(lstm: nn.LSTM, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a layer over all positions, padding included, as the reference implementation does."""
    return _call_lstm(lstm, inputs)


_Sequences = TypeVar("_Sequences", torch.Tensor, PackedSequence)


def _call_lstm(lstm: nn.LSTM, inputs: _Sequences) -> _Sequences:
    """The outputs of a layer, in the type of its weights; on a CPU computed in float32 at least.

    A CPU without AVX-512 lacks the LSTM of oneDNN in bfloat16: "could not create a primitive
    descriptor".
    """
    if inputs.is_cuda:
        return lstm(inputs)[0]
    dtype = next(lstm.parameters()).dtype
    exact = torch.promote_types(dtype, torch.float32)
    weights = {name: value.to(exact) for name, value in lstm.named_parameters()}
    with torch.autocast("cpu", enabled=False):
        return functional_call(lstm, weights, (inputs.to(exact),))[0].to(dtype)


class SpatialDropout(nn.Module):
    """Drop whole channels of (B, T, C) for all T (Tompson et al., 2015, arXiv:1411.4280)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training or self.probability == 0:
            return values
        keep = nn.functional.dropout(torch.ones_like(values[:, :1]), self.probability)
        return values * keep


def sequence_loss(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`weighted_loss` over the real slices: logits, labels (B, T, 6), mask (B, T) → scalar."""
    mask = mask.bool()
    return weighted_loss(logits[mask], labels[mask])


def train_lstm(
    training: SeriesDataset,
    config: LSTMConfig,
    directory: Path,
    device: torch.device,
    validation: SeriesDataset | None = None,
    description: str = "LSTM",
    deadline: float | None = None,
) -> list[dict]:
    """Train on the series of `training`; weights of every epoch go to `directory`.

    With `validation` the history also has its loss after each epoch. Raises as `fit` does.
    """

    def make_batches(epoch: int, batches: list[np.ndarray]) -> Iterable[dict]:
        for numbers in batches:
            batch = collate_series([training[number] for number in numbers])
            yield {**batch, "names": [training.names[number] for number in numbers]}

    def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
        return sequence_loss(model(batch["emb"], batch["mask"]), batch["labels"], batch["mask"])

    def validate(model: SequenceLSTM) -> dict:
        assert validation is not None
        return {"validation_loss": measure_loss(model, validation, device)}

    checked = validation is not None and len(validation) > 0
    task = Task(len(training), make_batches, compute_loss, validate if checked else None)
    with seed_random(config.seed, device):
        model = SequenceLSTM(config)
        if config.standardize:
            rows = training.rows[np.concatenate(training.positions)]
            model.fit_standardization(training.embeddings, rows)
        model.to(device)
        return fit(model, config, task, directory, description=description, deadline=deadline)


def measure_loss(model: SequenceLSTM, series: SeriesDataset, device: torch.device) -> float:
    """The loss over all slices of `series`."""
    logits = torch.from_numpy(predict_logits(model, series, device))
    positions = np.concatenate(series.positions)
    return float(weighted_loss(logits[positions], torch.from_numpy(series.labels[positions])))


def load_lstm(path: Path) -> SequenceLSTM:
    """Load a trained model from the weights and configuration in a `.safetensors` file.

    Raises `TrainingError` naming the file if it holds no such model.
    """
    weights, config = load_trained(path, LSTMConfig)
    with torch.device("meta"):  # else two seconds per model of full size go into random weights
        model = SequenceLSTM(config)
    fill_model(model, weights, path)
    return model.eval()


def predict_logits(
    model: SequenceLSTM, series: SeriesDataset, device: torch.device, slices: int = 2048
) -> np.ndarray:
    """Logits of every row of the dataset's table, float32 (rows, 6); NaN without an embedding.

    Series of similar length share a batch of about `slices` slices; a model that is not packed gets
    each series alone, so that no padding reaches its LSTM. Raises `TrainingError` naming a series
    whose logits are not finite.
    """
    model.eval()
    slices = slices if model.config.packed else 1
    logits = np.full((len(series.rows), len(LABELS)), np.nan, dtype=np.float32)
    batches = (
        {**collate_series([series[number] for number in numbers]), "numbers": numbers}
        for numbers in batch_by_length(series.lengths(), slices)
    )

    def forward(batch: dict) -> torch.Tensor:
        return model(batch["emb"], batch["mask"])

    for batch, output in predict(forward, batches, device, model.config.opt_level):
        mask = batch["mask"]
        finite = torch.isfinite(output).all(dim=2) | ~mask
        if not finite.all():
            worst = batch["numbers"][int(finite.all(dim=1).to(torch.uint8).argmin())]
            raise TrainingError(f"series {series.names[worst]}: its logits are not finite")
        logits[batch["embidx"].numpy()[mask.numpy()]] = output[mask].float()
    return logits
