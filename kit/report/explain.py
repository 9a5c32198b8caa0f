"""What each neighbour contributes to a slice's answer: occlusion along the series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.competition import LABELS
from kit.embeddings import EmbeddingStore
from kit.lstm import SequenceLSTM, load_lstm
from kit.report.page import write_page
from kit.report.run_page import present_series, read_series
from kit.runs.directory import (
    Run,
    list_classifier_epochs,
    list_folds,
    list_lstm_epochs,
    read_recipe,
)
from kit.training.distributed import choose_device

_BATCH = 2048  # slices that go through the LSTM at once


def explain_series(run: Run, series: str) -> Path:
    """Write the page that explains one series of a run, and return its path.

    `series` is a name or a part of it that no other series has. A held-out series is explained by
    the models that have not seen it, a test series by those of all folds: the last LSTM epoch on
    each of the embeddings, averaged. Raises `ValueError` where no one series is meant, or where
    it has a single slice.
    """
    recipe = read_recipe(run)
    part = read_series(run, series)
    if len(part) < 2:
        raise ValueError(f"{part['series'].iloc[0]} has a single slice, which has no neighbours")
    folds = [int(part["fold"].iloc[0])] if "fold" in part else list_folds(recipe)
    last = list_lstm_epochs(recipe)[-1]
    influence = [
        measure_influence(
            load_lstm(run.lstm(fold, epoch) / f"epoch{last}.safetensors").to(choose_device()),
            read_embeddings(EmbeddingStore(run.store(fold, epoch)), part),
        )
        for fold in folds
        for epoch in list_classifier_epochs(recipe)
    ]
    mean = np.round(np.mean(influence, axis=0), 4).tolist()
    data = {
        **present_series(part, recipe.classifier),
        "title": "What the neighbours contribute",
        "facts": [
            ["run", run.path.absolute().name],
            ["LSTMs averaged", str(len(influence))],
            ["folds", ", ".join(map(str, folds))],
        ],
        "explanation": dict(zip(LABELS, mean, strict=True)),
    }
    return write_page(run.explanation(part["SeriesInstanceUID"].iloc[0]), data)


@torch.inference_mode()
def measure_influence(model: SequenceLSTM, embeddings: torch.Tensor) -> np.ndarray:
    """How much slice j raises the logits of slice i: (T, E) → (6, T, T), [label, i, j].

    The logit as it is, minus the logit when the embedding of slice j is replaced by the mean of
    its two neighbours (at an end, by its only one): what it then shows is nothing of its own.
    """
    embeddings = embeddings.to(model.linear.weight)
    slices = len(embeddings)
    padded = torch.cat([embeddings[1:2], embeddings, embeddings[-2:-1]])
    replaced = (padded[:-2] + padded[2:]) / 2
    whole = torch.ones(1, slices, dtype=torch.bool, device=embeddings.device)
    full = model(embeddings[None], whole)[0]  # (T, 6)
    differences = []
    for places in torch.arange(slices).split(max(1, _BATCH // slices)):
        batch = embeddings.repeat(len(places), 1, 1)
        batch[torch.arange(len(places)), places] = replaced[places]
        differences.append(full - model(batch, whole.expand(len(places), -1)))
    return torch.cat(differences).permute(2, 1, 0).float().cpu().numpy()


def read_embeddings(store: EmbeddingStore, part: pd.DataFrame) -> torch.Tensor:
    """The embeddings of a series' slices, in order, float32 (T, E)."""
    rows = store.find_rows(part["SOPInstanceUID"])
    return torch.from_numpy(np.asarray(store.embeddings[rows], dtype=np.float32))
