"""Embeddings that are made, removed with their LSTM, and made again where their weights change."""

import shutil

import numpy as np
import pytest
from conftest import copy_run

from kit.classifier import load_classifier
from kit.embeddings import EmbeddingStore
from kit.runs import status
from kit.runs.directory import RunError
from kit.runs.lstms import fit_lstms
from kit.runs.stores import embed
from kit.training.checkpoints import save_weights


@pytest.fixture
def removed(small_run, tmp_path):
    """The small run, without the embeddings of fold 0."""
    run = copy_run(small_run, tmp_path / "run")
    (run.store(0, 1) / "embeddings.npy").unlink()
    return run


def test_removed_embeddings_are_done_and_neither_made_nor_needed_again(removed):
    (embeddings,) = status.list_embeddings(removed, status.read_recipe(removed), 0)
    assert status.describe_output(embeddings) == "done and removed"
    assert embed(removed, 0, workers=0).empty
    assert status.is_removed(removed.store(0, 1))
    before = removed.predictions(0, 1, 2).stat().st_mtime_ns
    assert len(fit_lstms(removed, [0])) == 2
    assert removed.predictions(0, 1, 2).stat().st_mtime_ns == before


def test_another_lstm_needs_them_and_says_how_to_get_them(removed, small_run):
    shutil.rmtree(removed.lstm(0, 1))
    with pytest.raises(RunError, match="embeddings were removed when their LSTM had predicted"):
        fit_lstms(removed, [0])
    shutil.rmtree(removed.store(0, 1))
    assert embed(removed, 0, [2], workers=0).empty  # another epoch was chosen
    assert embed(removed, 0, [1], workers=0)["classifier_epoch"].tolist() == [1]
    expected = EmbeddingStore(small_run.store(0, 1))
    found = EmbeddingStore(removed.store(0, 1))
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-3)


def test_a_classifier_that_was_trained_again_embeds_again(removed):
    weights = removed.classifier(0) / "epoch1.safetensors"
    model = load_classifier(weights)
    model.head.bias.data += 1
    save_weights(weights, model, epoch=1)
    assert len(embed(removed, 0, workers=0)) == 1
    with pytest.raises(RunError, match="was trained on other embeddings"):
        fit_lstms(removed, [0])
