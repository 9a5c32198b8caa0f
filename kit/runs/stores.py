"""The embeddings of a run: computed by each of the classifier's last epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kit.embeddings import extract_embeddings
from kit.files import hash_file
from kit.processes import choose_workers
from kit.runs import status
from kit.runs.competition import note_unreadable
from kit.runs.directory import (
    Run,
    change_tables,
    is_imported,
    list_classifier_epochs,
    list_kept_epochs,
    read_document,
    read_recipe,
    require_file,
)
from kit.runs.provenance import is_adopted
from kit.runs.tables import read_slices
from kit.runs.timings import time_stage
from kit.training.distributed import choose_device, rank, wait_for_all


def embed(
    run: Run,
    fold: int | str,
    chosen: Sequence[int] | None = None,
    *,
    workers: int | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Embed every slice with each of the last classifier epochs of a fold, or those `chosen`.

    Returns one row per store, as `list_stores` does.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    epochs = [] if is_imported(run, recipe, fold) else list_classifier_epochs(recipe)
    kept = epochs if is_adopted(run) else list_kept_epochs(recipe)[0]
    for epoch in epochs:
        weights = run.classifier(fold) / f"epoch{epoch}.safetensors"
        if chosen is not None and epoch not in chosen:
            continue
        if is_embedded(run, fold, epoch) and _is_needless(run.store(fold, epoch), weights, kept):
            continue
        require_file(weights, f"kit train-classifier {run} --fold {fold}")
        with time_stage(run, f"fold{fold} embeddings", run.store(fold, epoch)):
            store = extract_embeddings(
                slices,
                weights,
                run.store(fold, epoch),
                choose_device(),
                choose_workers(workers),
                description=f"Fold {fold} embeddings {epoch}",
                deadline=deadline,
            )
        if rank() == 0:
            with change_tables(run):
                note_unreadable(run.skipped, slices, store)
            if epoch not in kept:
                weights.unlink()
    wait_for_all()
    return status.list_stores(run, fold)


def is_embedded(run: Run, fold: int | str, epoch: int) -> bool:
    return (run.store(fold, epoch) / "store.json").exists()


def _is_needless(store: Path, weights: Path, kept: Sequence[int]) -> bool:
    """Whether finished embeddings lack no weights, or were removed after these made them."""
    if not weights.exists():
        return status.read_epoch(weights) not in kept
    source = read_document(store / "store.json").get("weights_sha256")
    return status.is_removed(store) and source == hash_file(weights)
