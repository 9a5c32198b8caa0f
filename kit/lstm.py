"""The masked bidirectional LSTM over a series of slice embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from kit.competition import LABELS
from kit.recurrence import run_lstm
from kit.sequences import (
    SeriesDataset,
    add_deltas,
    batch_by_length,
    collate_series,
    read_rows,
)
from kit.training.checkpoints import TrainingError, fill_model, load_trained
from kit.training.config import TrainingConfig, change_default, option
from kit.training.loop import fit, predict, weighted_loss


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(TrainingConfig):
    """The sequence model and how it is trained. Defaults are the published ones.

    From the 2nd-place write-up and repository: two bidirectional layers of 2048 units over
    embeddings of 2048, Adam, learning rate × 0.95 an epoch, 4 series a batch.
    """

    embedding_size: int = 2048  # the pipeline takes it from the embeddings
    hidden_size: int = option(2048, "LSTM units per direction")
    packed: bool = option(True, "no: the reference forward pass, where padding reaches the LSTM")
    deltas: bool = option(True, "append the differences to both neighbours to each embedding")
    embedding_dropout: float = option(0.0, "share of channels dropped for a whole series")
    standardize: bool = option(
        False, "scale embeddings by the standard deviation of the training part"
    )

    epochs: int = change_default(TrainingConfig, "epochs", 12)
    learning_rate: float = change_default(TrainingConfig, "learning_rate", 1e-5)
    schedule: str = change_default(TrainingConfig, "schedule", "exponential")
    weight_decay: float = change_default(TrainingConfig, "weight_decay", 0.01)
    batch_size: int = change_default(TrainingConfig, "batch_size", 4)


class SequenceLSTM(nn.Module):
    """Logits for every slice of a series from the embeddings of all of them.

    hidden = h1 + h2 + relu(linear1(h1)) + relu(linear2(h2)) + [e, e], with h1 and h2 the outputs
    of the two layers; [e, e] is projected (`skip`) where the hidden size is not the embedding's.
    State-dict names are those of the published model.
    """

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
        """Take mean and deviation of the channels from `rows` of (N, E) embeddings, in pieces."""
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

        With `packed` the logits of a series are the same whatever it is batched with, and those
        of padded places mean nothing.
        """
        mask = mask.bool()
        embeddings = embeddings.to(self.linear.weight.dtype)
        if self.config.standardize:
            embeddings = (embeddings - self.embedding_mean) * self.embedding_scale
            embeddings = embeddings * mask[..., None]
        embeddings = self.embedding_dropout(embeddings)
        inputs = add_deltas(embeddings, mask) if self.config.deltas else embeddings
        if not self.config.packed:
            mask = torch.ones_like(mask)  # padding is taken for slices
        if embeddings.device.type == "cpu":
            hidden1 = run_lstm(self.lstm1, inputs, mask)  # (B, T, 2H)
            return self._head(embeddings, hidden1, run_lstm(self.lstm2, hidden1, mask))
        if not mask.all():
            return self._forward_packed(embeddings, inputs, mask)
        hidden1, _ = self.lstm1(inputs)
        hidden2, _ = self.lstm2(hidden1)
        return self._head(embeddings, hidden1, hidden2)

    def _forward_packed(self, embeddings, inputs, mask):
        """Run over the real slices alone, wherever the padding stands."""
        batch, length = mask.shape
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # real slices to the front
        lengths = mask.sum(dim=1).cpu()
        rows = torch.arange(batch, device=mask.device)[:, None]
        packed = pack_padded_sequence(
            torch.cat([inputs, embeddings], dim=2)[rows, order],
            lengths,
            batch_first=True,
            enforce_sorted=False,
        )
        inputs, embeddings = packed.data.split([inputs.shape[2], embeddings.shape[2]], dim=1)
        hidden1, _ = self.lstm1(_replace_data(packed, inputs))
        hidden2, _ = self.lstm2(hidden1)
        logits = self._head(embeddings, hidden1.data, hidden2.data)
        padded, _ = pad_packed_sequence(
            _replace_data(packed, logits), batch_first=True, total_length=length
        )
        return torch.zeros_like(padded).scatter(1, order[..., None].expand_as(padded), padded)

    def _head(self, embeddings, hidden1, hidden2):
        doubled = torch.cat([embeddings, embeddings], dim=-1)
        hidden = (
            hidden1
            + hidden2
            + self.linear1(hidden1).relu()
            + self.linear2(hidden2).relu()
            + (self.skip(doubled) if hasattr(self, "skip") else doubled)
        )
        return self.linear(hidden)


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

    With `validation` the history has its loss after each epoch too.
    """
    torch.manual_seed(config.seed)
    model = SequenceLSTM(config)
    if config.standardize:
        rows = training.rows[np.concatenate(training.positions)]
        model.fit_standardization(training.embeddings, rows)
    model.to(device)

    def make_batches(epoch: int, batches: list[np.ndarray]) -> Iterable[dict]:
        for numbers in batches:
            batch = collate_series([training[number] for number in numbers])
            yield {**batch, "names": [training.names[number] for number in numbers]}

    def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
        return sequence_loss(model(batch["emb"], batch["mask"]), batch["labels"], batch["mask"])

    def validate(model: SequenceLSTM) -> dict:
        logits = torch.from_numpy(predict_logits(model, validation, device))
        positions = np.concatenate(validation.positions)
        labels = torch.from_numpy(validation.labels[positions])
        return {"validation_loss": float(weighted_loss(logits[positions], labels))}

    return fit(
        model,
        config,
        make_batches,
        compute_loss,
        len(training),
        directory,
        description=description,
        deadline=deadline,
        validate=validate if validation is not None and len(validation) else None,
    )


def load_lstm(path: Path) -> SequenceLSTM:
    """A trained model from the weights and configuration in a `.safetensors` file.

    Raises `TrainingError` naming the file where it holds no such model.
    """
    weights, config = load_trained(path, LSTMConfig)
    with torch.device("meta"):  # no random weights to be replaced: two seconds at the full size
        model = SequenceLSTM(config)
    fill_model(model, weights, path)
    return model.eval()


def predict_logits(
    model: SequenceLSTM, series: SeriesDataset, device: torch.device, slices: int = 2048
) -> np.ndarray:
    """Logits of every row of the dataset's table, float32 (rows, 6); NaN without an embedding.

    Series of like length go together, about `slices` slices a batch; each comes alone where padding
    would reach the LSTM. Raises `TrainingError` naming a series whose logits are not finite.
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
        finite = torch.isfinite(output).all(dim=2).cpu() | ~mask
        if not finite.all():
            worst = batch["numbers"][int(finite.all(dim=1).to(torch.uint8).argmin())]
            raise TrainingError(f"series {series.names[worst]}: its logits are not finite")
        logits[batch["embidx"].numpy()[mask.numpy()]] = output[mask].float().cpu()
    return logits


def _replace_data(packed: PackedSequence, data: torch.Tensor) -> PackedSequence:
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
