"""Occlusion along a series: numbers by hand, and the page that shows them."""

import numpy as np
import pandas as pd
import pytest
import torch
from report_pages import read_data

from kit.cli.commands import main
from kit.lstm import LSTMConfig, SequenceLSTM, make_model
from kit.report.explain import explain_series, measure_influence
from kit.report.run_page import read_series
from kit.runs.directory import Run


def test_without_recurrence_a_slice_is_influenced_by_itself_alone():
    torch.manual_seed(0)
    config = LSTMConfig(embedding_size=4, hidden_size=4)
    model = SequenceLSTM(config).eval()
    for name, value in model.named_parameters():
        if name.startswith("lstm"):
            torch.nn.init.zeros_(value)
    embeddings = torch.randn(5, 4)
    influence = measure_influence(model, embeddings)
    # What is left is linear([e, e]): the middle differs from its neighbours' mean by that.
    off_diagonal = influence[:, ~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, 0, atol=1e-6)
    away = embeddings - torch.stack([
        embeddings[1], (embeddings[0] + embeddings[2]) / 2, (embeddings[1] + embeddings[3]) / 2,
        (embeddings[2] + embeddings[4]) / 2, embeddings[3],
    ])  # fmt: skip
    expected = torch.cat([away, away], dim=1) @ model.linear.weight.T
    diagonal = influence[:, np.arange(5), np.arange(5)].T
    np.testing.assert_allclose(diagonal, expected.detach().numpy(), atol=1e-5)


def test_influence_is_the_fall_of_each_logit_when_one_slice_is_replaced():
    torch.manual_seed(1)
    model = SequenceLSTM(LSTMConfig(embedding_size=6, hidden_size=3)).eval()
    embeddings, mask = torch.randn(1, 4, 6), torch.ones(1, 4, dtype=torch.bool)
    changed = embeddings.clone()
    changed[0, 2] = (embeddings[0, 1] + embeddings[0, 3]) / 2
    with torch.no_grad():
        expected = (model(embeddings, mask) - model(changed, mask))[0]  # (explained, label)
    influence = measure_influence(model, embeddings[0])
    np.testing.assert_allclose(influence[:, :, 2], expected.T.numpy(), atol=1e-6)


def test_held_out_and_test_series_are_explained(small_run, capsys):
    held_out = pd.read_parquet(small_run.oof).iloc[0]
    data = read_data(explain_series(small_run, held_out["series"]))
    slices = len(read_series(small_run, held_out["series"]))
    assert np.shape(data["explanation"]["any"]) == (slices, slices)
    assert ["folds", str(held_out["fold"])] in data["facts"]
    test = pd.read_parquet(small_run.test)["series"].iloc[0]
    assert main(["explain", str(small_run), test, "--quiet"]) == 0
    path = Run(small_run.path).explanation(test.split("/")[-1])
    assert capsys.readouterr().out.strip() == str(path)
    data = read_data(path)
    assert ["folds", "0, 1"] in data["facts"]
    assert data["series"][0]["truth"] is None
    assert np.abs(data["explanation"]["any"]).max() > 0


def test_a_single_slice_cannot_be_explained(copied_run):
    oof = pd.read_parquet(copied_run.oof).head(1)
    oof.to_parquet(copied_run.oof)
    with pytest.raises(ValueError, match="single slice"):
        explain_series(copied_run, oof["series"].iloc[0])


def test_a_model_that_pools_series_is_explained_by_its_slices():
    torch.manual_seed(1)
    config = LSTMConfig(embedding_size=6, hidden_size=3, model="gru", deltas=False)
    model = make_model(config).eval()
    embeddings, mask = torch.randn(1, 4, 6), torch.ones(1, 4, dtype=torch.bool)
    changed = embeddings.clone()
    changed[0, 3] = embeddings[0, 2]
    with torch.no_grad():
        expected = (model(embeddings, mask)[0] - model(changed, mask)[0])[0]
    influence = measure_influence(model, embeddings[0])
    np.testing.assert_allclose(influence[:, :, 3], expected.T.numpy(), atol=1e-6)


def test_a_series_of_a_folder_of_scans_is_explained_as_in_its_run(small_run, small_data, tmp_path):
    series = pd.read_parquet(small_run.test)["series"].iloc[0]
    expected = read_data(explain_series(small_run, series))
    page, name = tmp_path / "page.html", series.split("/")[-1]
    scans = ["--scans", str(small_data / "stage_2_test"), "--out", str(page), "--quiet"]
    assert main(["explain", "--run", str(small_run), name, *scans]) == 0
    found = read_data(page)
    assert found["model"] == expected["model"]
    for label in ("any", "epidural"):
        shown, in_run = found["explanation"][label], expected["explanation"][label]
        np.testing.assert_allclose(shown, in_run, atol=2e-3)
    bag = found["series"][0]["probabilities"]["bag"]
    np.testing.assert_allclose(bag, expected["series"][0]["probabilities"]["bag"], atol=2e-3)
    assert main(["explain", str(small_run), name, *scans]) == 1  # the page is there
    assert main(["explain", str(small_run), "nothing", *scans, "--overwrite"]) == 1
    assert read_data(page) == found
    assert main(["explain", str(small_run), name, "--out", str(page), "--overwrite"]) == 1
    assert main(["explain", name]) == 1
