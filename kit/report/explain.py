"""How much each slice contributes to the prediction for another: occlusion along the series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from kit import InputError
from kit.competition import LABELS
from kit.embeddings import EmbeddingStore
from kit.ensemble import name_columns
from kit.lstm import SequenceModel, load_lstm, split_output
from kit.report.page import describe_model, write_page
from kit.report.run_page import find_series, read_series
from kit.report.series import describe_viewer, present_series
from kit.runs.directory import (
    Run,
    list_folds,
    list_kept_epochs,
    list_lstm_epochs,
    read_recipe,
)
from kit.runs.gathering import gather_files
from kit.runs.members import bag_members, embed_members
from kit.runs.prediction import load_model
from kit.slices.slabs import average_thin
from kit.training.config import ClassifierConfig
from kit.training.distributed import choose_device

_BATCH = 2048  # slices that go through the LSTM at once


def explain_series(run: Run, series: str) -> Path:
    """Write the page that explains one series of a run, and return its path.

    `series` is a series' name or a part that only its name contains. A held-out series is
    explained by the models that were not trained on it, a test series by the models of all folds.
    The page averages the last LSTM epoch of each set of embeddings. Raises `InputError` if `series`
    does not identify one series, or if that series has a single slice.
    """
    recipe = read_recipe(run)
    part = read_series(run, series)
    _refuse_single(part, part["series"].iloc[0])
    folds = [int(part["fold"].iloc[0])] if "fold" in part else list_folds(recipe)
    last = list_lstm_epochs(recipe)[-1]
    influence = [
        measure_influence(
            load_lstm(run.lstm(fold, epoch) / f"epoch{last}.safetensors").to(choose_device()),
            _read_embeddings(EmbeddingStore(run.store(fold, epoch)), part),
        )
        for fold in folds
        for epoch in list_kept_epochs(recipe)[0]
    ]
    facts = [["folds", ", ".join(map(str, folds))]]
    page = run.explanation(part["SeriesInstanceUID"].iloc[0])
    return _write_influence(page, run, part, recipe.classifier, influence, facts)


def explain_scan(scans: Path, run: Run, series: str, page: Path) -> Path:
    """Write the page that explains one series of a folder or zip of scans, and return its path.

    `series` is as for `explain_series`; each set of embeddings is explained by its last LSTM.
    Raises `InputError` as that does, and `RunError` where the run is not complete.
    """
    model, gathered = load_model(run.path), gather_files(scans)
    slices = average_thin(gathered.slices, gathered.described)
    part = slices[slices["series"] == find_series(slices, series)].reset_index(drop=True)
    with TemporaryDirectory(prefix="kit-explain") as folder:
        stores = embed_members(part, model.members, Path(folder), None)
        probabilities, _ = bag_members(part, model.members, stores)
        columns = probabilities.set_axis(name_columns("bag"), axis=1)
        part = part.join(columns, on="SOPInstanceUID", how="inner").reset_index(drop=True)
        _refuse_single(part, series)
        influence = [
            measure_influence(
                load_lstm(lstms[-1]).to(choose_device()), _read_embeddings(store, part)
            )
            for store, lstms in zip(stores, model.members.values(), strict=True)
        ]
    return _write_influence(page, run, part, model.recipe.classifier, influence)


def _refuse_single(part: pd.DataFrame, series: str) -> None:
    if len(part) < 2:
        raise InputError(f"{series} has a single slice, which has no neighbours")


def _write_influence(
    page: Path,
    run: Run,
    part: pd.DataFrame,
    config: ClassifierConfig,
    influence: list[np.ndarray],
    facts: Sequence[list[str]] = (),
) -> Path:
    """Write the page of the mean of what each LSTM gave, (6, T, T)."""
    mean = np.stack(influence).mean(axis=0)
    series, images = present_series(part, [part["series"].iloc[0]], config)
    data = {
        **describe_viewer(config),
        "series": series,
        "title": "Contributions of neighbouring slices",
        **describe_model(run),
        "facts": [
            ["run", run.path.absolute().name],
            ["LSTMs averaged", str(len(influence))],
            *facts,
        ],
        "explanation": dict(zip(LABELS, mean.round(4).tolist(), strict=True)),
    }
    return write_page(page, data, images)


@torch.inference_mode()
def measure_influence(model: SequenceModel, embeddings: torch.Tensor) -> np.ndarray:
    """How much slice j raises the logits of slice i: (T, E) → (6, T, T), [label, i, j].

    The value is the logit minus the logit after the embedding of slice j is replaced by the mean
    of its two neighbours (of an end slice, by its only neighbour), so that slice j shows nothing
    that its neighbours do not.
    """
    embeddings = embeddings.to(next(model.parameters()))
    slices = len(embeddings)
    padded = torch.cat([embeddings[1:2], embeddings, embeddings[-2:-1]])
    replaced = (padded[:-2] + padded[2:]) / 2
    whole = torch.ones(1, slices, dtype=torch.bool, device=embeddings.device)
    full = split_output(model(embeddings[None], whole))[0][0]  # (T, 6)
    differences = []
    for places in torch.arange(slices).split(max(1, _BATCH // slices)):
        batch = embeddings.repeat(len(places), 1, 1)
        batch[torch.arange(len(places)), places] = replaced[places]
        changed, _ = split_output(model(batch, whole.expand(len(places), -1)))
        differences.append(full - changed)
    return torch.cat(differences).permute(2, 1, 0).float().cpu().numpy()


def _read_embeddings(store: EmbeddingStore, part: pd.DataFrame) -> torch.Tensor:
    """Read the embeddings of the slices in `part`, in their order: float32 (T, E)."""
    rows = store.find_rows(part["SOPInstanceUID"])
    return torch.from_numpy(np.asarray(store.embeddings[rows], dtype=np.float32))
