"""Bagging of epochs, folds and runs; the rolling mean; out-of-fold scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from kit import InputError
from kit.competition import LABELS, label_log_losses, weighted_log_loss

# Columns of `oof.parquet` and `test.parquet` are {model}_{label}; these are the names on pages.
MODELS = {
    "classifier": "classifier",
    "rolling_mean": "rolling mean",
    "lstm": "LSTM",
    "bag": "bag",
}

CLIP = 1e-5  # the reference implementation clips probabilities to [1e-5, 1 − 1e-5]

# Weights of the previous, this and the next slice; reference implementation: (0.6, 1.8, 0.6) / 3.
_ROLLING_WEIGHTS = (0.2, 0.6, 0.2)


def name_columns(model: str) -> list[str]:
    """Name the columns of a model's probabilities, in the order of the labels."""
    return [f"{model}_{label}" for label in LABELS]


def bag(predictions: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Average wide predictions (images × labels) of the same images, and clip the mean.

    Takes any iterable and keeps only one sum in memory. Rows keep the order of the first member.
    Raises `InputError` where a member has other images or labels, or a value outside [0, 1].
    """
    members = iter(predictions)
    first = next(members, None)
    if first is None:
        raise InputError("a bag needs at least one member")
    total, count = np.zeros(first.shape), 0
    for member in itertools.chain([first], members):
        if not member.index.equals(first.index) or not member.columns.equals(first.columns):
            alike = all(
                len(mine) == len(other) and mine.is_unique and set(mine) == set(other)
                for mine, other in zip(member.axes, first.axes, strict=True)
            )
            if not alike:
                raise InputError(f"member {count + 1} of the bag has other images or labels")
            member = member.reindex(index=first.index, columns=first.columns)
        values = member.to_numpy(np.float64)
        possible = (values >= 0) & (values <= 1)
        if not possible.all():
            row, column = np.argwhere(~possible)[0]
            what = f"{values[row, column]:g} for {first.index[row]}, {first.columns[column]}"
            raise InputError(f"member {count + 1} of the bag has {what}: no probability")
        total += values
        count += 1
    mean = np.clip(total / count, CLIP, 1 - CLIP)
    return pd.DataFrame(mean, index=first.index, columns=first.columns)


def fit_shares(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By label, the share of the logits of `second` in a mix with the least log loss: (6,).

    All are (N, 6); the mix is one of `mix_logits`, its shares are twentieths.
    """
    shares = np.linspace(0, 1, 21)
    losses = [label_log_losses(labels, mix_logits(first, second, share)) for share in shares]
    return shares[np.argmin(losses, axis=0)]


def mix_logits(first: np.ndarray, second: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Probabilities (N, 6) whose logits are (1 − share) · logit(first) + share · logit(second)."""
    logits = [
        np.log(p) - np.log1p(-p) for p in (np.clip(p, CLIP, 1 - CLIP) for p in (first, second))
    ]
    return 1 / (1 + np.exp(-((1 - share) * logits[0] + share * logits[1])))


def mix_folds(
    labels: np.ndarray, folds: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """As `mix_logits`, each fold's slices in the shares that fit the slices of all other folds."""
    mixed = np.empty(np.shape(first))
    for fold in np.unique(folds):
        inside = folds == fold
        shares = fit_shares(labels[~inside], first[~inside], second[~inside])
        mixed[inside] = mix_logits(first[inside], second[inside], shares)
    return mixed


def rolling_mean(
    probabilities: np.ndarray, series: np.ndarray, weights: tuple[float, ...] = _ROLLING_WEIGHTS
) -> np.ndarray:
    """Smooth (N, 6) along each series; rows in the order of the slice table, `series` (N,).

    At the ends of a series, where a neighbor is missing, the remaining weights are scaled up.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    codes = pd.factorize(np.asarray(series))[0]
    total, mass = np.zeros_like(probabilities), np.zeros((len(codes), 1))
    reach = len(weights) // 2
    for shift, weight in zip(range(-reach, reach + 1), weights, strict=True):
        here = slice(max(0, -shift), len(codes) - max(0, shift))
        there = slice(max(0, shift), len(codes) - max(0, -shift))
        same = (codes[here] == codes[there])[:, None] * weight
        total[here] += same * probabilities[there]
        mass[here] += same
    return total / mass


def score(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Compute the log loss per label and `weighted`, the competition's metric; (N, 6) each."""
    probabilities = np.clip(probabilities, CLIP, 1 - CLIP)
    losses = dict(zip(LABELS, map(float, label_log_losses(labels, probabilities)), strict=True))
    return {**losses, "weighted": weighted_log_loss(labels, probabilities)}


def score_folds(
    table: pd.DataFrame, models: dict[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float]]]:
    """Score each model's out-of-fold probabilities: {model: {"all" or fold: what `score` returns}}.

    `table` has the labels and `fold`; `models` the probabilities, (len(table), 6) each.
    """
    labels, folds = table[list(LABELS)].to_numpy(), table["fold"].to_numpy()
    parts = {"all": np.ones(len(table), bool), **{str(k): folds == k for k in np.unique(folds)}}
    return {
        model: {name: score(labels[part], values[part]) for name, part in parts.items()}
        for model, values in models.items()
    }
