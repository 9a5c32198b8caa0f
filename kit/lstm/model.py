"""The masked bidirectional LSTM over a series of slice embeddings; training of either model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from kit.competition import LABELS
from kit.sequences import (
    SeriesDataset,
    add_deltas,
    batch_by_length,
    collate_series,
    read_rows,
)
from kit.sequences.gru import SequenceGRU
from kit.sequences.layers import run_packed, run_padded
from kit.training import amp
from kit.training.checkpoints import TrainingError, fill_model, load_trained
from kit.training.config import LSTMConfig
from kit.training.inference import move_batch, predict
from kit.training.loop import Task, fit, measure_slices, seed_random, weighted_loss
from kit.training.step import make_ahead

_LOGIT_ENDS = np.log([1e-6, 1 - 1e-6]) - np.log([1 - 1e-6, 1e-6])  # of a probability


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
        padded positions mean nothing. Where the mask is on the CPU, no GPU is waited for.
        """
        mask, embeddings = mask.bool(), embeddings.to(self.linear.weight.dtype)
        real = mask.to(embeddings.device, non_blocking=True)
        if self.config.standardize:
            embeddings = (embeddings - self.embedding_mean) * self.embedding_scale
            embeddings = embeddings * real[..., None]
        embeddings = self.embedding_dropout(embeddings)
        inputs = add_deltas(embeddings, real) if self.config.deltas else embeddings
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


SequenceModel: TypeAlias = SequenceLSTM | SequenceGRU


def make_model(config: LSTMConfig) -> SequenceModel:
    """Make the sequence model that `config.model` names."""
    return SequenceGRU(config) if config.model == "gru" else SequenceLSTM(config)


def split_output(output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The logits of slices (B, T, 6) and of series (B, 6), None of a model without the latter."""
    return output if isinstance(output, tuple) else (output, None)


def sequence_loss(output: Any, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`weighted_loss` over the real slices: what a model returned, labels (B, T, 6), mask (B, T).

    Of a model with logits for the series, plus that of their series, so that every slice counts
    alike whatever batch it is in.
    """
    slices, series = split_output(output)
    real = mask.bool().to(slices.device, non_blocking=True)
    losses = measure_slices(slices, labels)
    if series is not None:
        of_series = measure_slices(series, (labels * real[..., None]).amax(dim=1))
        losses = losses + of_series[:, None]
    return torch.where(real, losses, 0).sum() / real.sum()


def compute_loss(model: nn.Module, batch: dict) -> torch.Tensor:
    """The loss on a batch of `collate_series`. Its mask stays on the CPU: no GPU is waited for."""
    device = next(model.parameters()).device
    moved = move_batch({name: batch[name] for name in ("emb", "labels")}, device)
    return sequence_loss(model(moved["emb"], batch["mask"]), moved["labels"], batch["mask"])


def train_lstm(
    training: SeriesDataset,
    config: LSTMConfig,
    directory: Path,
    device: torch.device,
    validation: SeriesDataset | None = None,
    description: str = "LSTM",
    deadline: float | None = None,
    use: Callable[[int], None] = lambda epoch: None,
) -> list[dict]:
    """Train on the series of `training`; weights of every epoch go to `directory`.

    With `validation` the history also has its loss after each epoch. `use` is called with each
    epoch's number once its weights are written. Raises as `fit` does.
    """

    def make_batch(numbers: np.ndarray) -> dict:
        batch = collate_series([training[number] for number in numbers])
        if device.type == "cuda":
            batch = {name: value.pin_memory() for name, value in batch.items()}
        return {**batch, "names": [training.names[number] for number in numbers]}

    def make_batches(epoch: int, batches: list[np.ndarray]) -> Iterable[dict]:
        return make_ahead(make_batch, batches, device)

    def validate(model: SequenceModel) -> dict:
        assert validation is not None
        return {"validation_loss": measure_loss(model, validation, device)}

    checked = validation is not None and len(validation) > 0
    task = Task(len(training), make_batches, compute_loss, validate if checked else None, use)
    with seed_random(config.seed, device):
        model = make_model(config)
        if isinstance(model, SequenceLSTM) and config.standardize:
            rows = training.rows[np.concatenate(training.positions)]
            model.fit_standardization(training.embeddings, rows)
        model.to(device)
        return fit(model, config, task, directory, description=description, deadline=deadline)


def measure_loss(model: SequenceModel, series: SeriesDataset, device: torch.device) -> float:
    """The loss over all slices of `series`."""
    logits = torch.from_numpy(predict_logits(model, series, device))
    positions = np.concatenate(series.positions)
    return float(weighted_loss(logits[positions], torch.from_numpy(series.labels[positions])))


def load_lstm(path: Path) -> SequenceModel:
    """Load a trained model from the weights and configuration in a `.safetensors` file.

    Raises `TrainingError` naming the file if it holds no such model.
    """
    weights, config = load_trained(path, LSTMConfig)
    with torch.device("meta"):  # else two seconds per model of full size go into random weights
        model = make_model(config)
    fill_model(model, weights, path)
    return model.eval()


def predict_logits(
    model: SequenceModel, series: SeriesDataset, device: torch.device, slices: int = 2048
) -> np.ndarray:
    """The logits of slices that `predict_series` returns."""
    return predict_series(model, series, device, slices)[0]


def predict_series(
    model: SequenceModel, series: SeriesDataset, device: torch.device, slices: int = 2048
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits of every row of the dataset's table, float32 (rows, 6), and of its series, (N, 6).

    Rows without an embedding get NaN; a model without logits for series gives None. Both are
    blended with the classifier's, as the configuration says. Series of similar length share a
    batch of about `slices` slices; a model that is not packed gets each series alone, so that no
    padding reaches its LSTM. Raises `TrainingError` naming a series whose logits are not finite.
    """
    return predict_by_all([model], series, device, slices)[0]


def predict_by_all(
    models: list[SequenceModel], series: SeriesDataset, device: torch.device, slices: int = 2048
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """As `predict_series`, by each of several models, in one pass over the embeddings."""
    if not all(model.eval().config.packed for model in models):
        slices = 1
    logits = np.full((len(models), len(series.rows), len(LABELS)), np.nan, dtype=np.float32)
    pooled = np.full((len(models), len(series), len(LABELS)), np.nan, dtype=np.float32)
    made = (
        (numbers, collate_series([series[number] for number in numbers]))
        for numbers in batch_by_length(series.lengths(), slices)
    )
    # The mask stays on the CPU: no GPU is waited for.
    batches = ({"emb": one["emb"], "kept": (numbers, one)} for numbers, one in made)

    def forward(batch: dict) -> tuple[torch.Tensor, ...]:
        outputs: list[torch.Tensor | None] = []
        for model in models:
            with amp.autocast(device, model.config.opt_level):
                outputs += split_output(model(batch["emb"], batch["kept"][1]["mask"]))
        return tuple(output.float() for output in outputs if output is not None)

    for batch, outputs in predict(forward, batches, device, "O0"):
        (numbers, one), rest = batch["kept"], iter(outputs)
        mask, rows = one["mask"], one["embidx"].numpy()[one["mask"].numpy()]
        finite = torch.ones(len(mask), dtype=torch.bool)
        for number, model in enumerate(models):
            found = next(rest)
            finite &= (torch.isfinite(found).all(dim=2) | ~mask).all(dim=1)
            logits[number, rows] = found[mask]
            if isinstance(model, SequenceGRU):
                pooled[number, numbers] = of_series = next(rest)
                finite &= torch.isfinite(of_series).all(dim=1)
        if not finite.all():
            worst = series.names[numbers[int(finite.to(torch.uint8).argmin())]]
            raise TrainingError(f"series {worst}: its logits are not finite")
    return [
        _blend_logits(model, series, *found)
        for model, *found in zip(models, logits, pooled, strict=True)
    ]


def _blend_logits(
    model: SequenceModel, series: SeriesDataset, logits: np.ndarray, pooled: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mix logits (rows, 6) and those of series (N, 6) with the classifier's, in the model's shares.

    A series has as the classifier's its highest probability of a slice, at least 1e-6.
    """
    with_series = isinstance(model, SequenceGRU)
    slice_share = np.asarray(model.config.slice_share, np.float32)
    series_share = np.asarray(model.config.series_share, np.float32)
    if (slice_share < 1).any() or (with_series and (series_share < 1).any()):
        if series.logits is None:
            raise TrainingError("the classifier's logits, which this model needs, are not known")
        logits = (1 - slice_share) * series.logits + slice_share * logits
        highest = np.array([series.logits[rows].max(axis=0) for rows in series.positions])
        highest = np.clip(highest.reshape(-1, len(LABELS)), *_LOGIT_ENDS)
        pooled = (1 - series_share) * highest + series_share * pooled
    return logits, pooled if with_series else None
