"""The members of a bag: slices by all of them, series where each pools a series by itself."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.classifier import load_classifier
from kit.competition import LABELS
from kit.embeddings import EmbeddingStore, make_series
from kit.lstm import make_model, predict_series
from kit.lstm import model as lstm
from kit.runs import members
from kit.runs.members import bag_members, predict_by_lstms, predict_slices
from kit.runs.tables import read_slices
from kit.training.checkpoints import save_weights
from kit.training.config import LSTMConfig


@pytest.fixture
def grus(tmp_path):
    """Two released forms with random weights, for embeddings of 512."""
    config = LSTMConfig(model="gru", embedding_size=512, hidden_size=4, deltas=False)
    config = replace(config, slice_share=(0.5,) * 6, series_share=(0.25,) * 6)
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"epoch{seed}.safetensors")
        save_weights(paths[-1], make_model(config))
    return paths


def test_what_takes_minutes_is_said_before_with_the_estimate(small_run, monkeypatch, caplog):
    weights = [small_run.classifier(fold) / "epoch1.safetensors" for fold in (0, 1)]
    members._estimate_time(weights, 34, members.Loaded())
    assert not caplog.text  # small images
    monkeypatch.setattr(members, "_SLOW_SIDE", 64)
    assert 0 < members._time_slice(load_classifier(weights[0])) < 30
    monkeypatch.setattr(members, "_time_slice", lambda model: 9.0)
    members._estimate_time(weights, 34, members.Loaded())
    assert "resnext50_32x4d takes 9.0 s a slice on this CPU: about 10 minutes" in caplog.text
    assert "for 34 slices by 2 classifiers" in caplog.text
    caplog.clear()
    members._estimate_time(weights[:1], 6, members.Loaded())
    assert not caplog.text  # half a minute


def test_series_are_averaged_where_every_member_pools_them(small_run, grus):
    slices, store = read_slices(small_run).head(90), EmbeddingStore(small_run.store(0, 1))
    found, series = bag_members(slices, {"classifier": grus}, [store])
    tables = [predict_slices(store, slices, path) for path in grus]
    np.testing.assert_allclose(found, (tables[0] + tables[1]) / 2, atol=1e-6)
    assert series.index.tolist() == make_series(store, slices).names
    assert list(series.columns) == list(LABELS)
    assert not np.allclose(series, found.groupby(slices["series"].to_numpy()[: len(found)]).max())
    mixed = [*grus, small_run.lstm(0, 1) / "epoch2.safetensors"]
    found, series = bag_members(slices, {"classifier": mixed}, [store])
    assert series is None
    assert len(found) == len(tables[0])


def test_slices_are_mixed_with_the_logits_of_the_store(small_run, grus):
    from kit.lstm import load_lstm

    slices, store = read_slices(small_run).head(60), EmbeddingStore(small_run.store(0, 1))
    model = load_lstm(grus[0])
    dataset = make_series(store, slices)
    raw = np.full((len(slices), 6), np.nan, np.float32)
    for number, positions in enumerate(dataset.positions):
        alone = torch.from_numpy(dataset[number]["emb"]).float()[None]
        with torch.inference_mode():
            raw[positions] = model(alone, torch.ones(1, len(positions)))[0][0]
    rows = store.find_rows(slices["SOPInstanceUID"])
    expected = 1 / (1 + np.exp(-(store.logits[rows] + raw).astype(np.float64) / 2))
    found = predict_slices(store, slices, grus[0])
    kept = pd.Series(range(len(slices)), slices["SOPInstanceUID"])[found.index]
    np.testing.assert_allclose(found, expected[kept], atol=5e-3)  # bfloat16
    _, pooled = predict_series(model, dataset, torch.device("cpu"))
    assert pooled.shape == (len(dataset), 6)


def test_one_pass_over_the_embeddings_serves_all_lstms_that_the_memory_holds(
    small_run, grus, monkeypatch
):
    slices, store = read_slices(small_run).head(90), EmbeddingStore(small_run.store(0, 1))
    paths = [small_run.lstm(0, 1) / "epoch1.safetensors", *grus]
    alone = [predict_slices(store, slices, path) for path in paths]
    read, sizes, collate = [], [path.stat().st_size for path in paths], lstm.collate_series
    monkeypatch.setattr(lstm, "collate_series", lambda items: read.extend(items) or collate(items))
    for room, passes in ((sum(sizes), 1), (sum(sizes[:2]), 2), (1, 3)):
        monkeypatch.setattr(members, "_choose_room", lambda device, room=room: room)
        together = list(predict_by_lstms(store, slices, paths))
        assert len(read) == passes * slices["series"].nunique()
        read.clear()
        assert [pooled is None for _, pooled in together] == [True, False, False]
        for (found, _), expected in zip(together, alone, strict=True):
            pd.testing.assert_frame_equal(found, expected)
