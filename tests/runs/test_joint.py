"""Runs whose models are trained as one network: what they leave, continue and refuse."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_run
from report_pages import read_data

from kit import pipeline
from kit.classifier import load_classifier
from kit.competition import LABELS
from kit.files import hash_file
from kit.lstm.joint import JointStart
from kit.lstm.series_images import SeriesImages
from kit.pipeline import list_stages, train_joint
from kit.runs.directory import Run, RunError, list_members, read_recipe
from kit.runs.export import export_runs
from kit.runs.joint import begin_joint, describe_joint, find_options
from kit.runs.provenance import read_provenance
from kit.runs.tables import read_slices
from kit.training.checkpoints import load_weights
from kit.training.config import JointConfig
from kit.training.loop import OutOfTime

CONFIG = JointConfig(epochs=1, opt_level="O0", slices_at_once=64)


@pytest.fixture(scope="module")
def joint(small_run, tmp_path_factory):
    """The small run's models trained jointly; not to be written to."""
    out = Run(tmp_path_factory.mktemp("joint") / "run")
    scores = train_joint(small_run, out, CONFIG, workers=1)
    assert scores["fold"].unique().tolist() == ["all", "0", "1"]
    return out


def test_it_leaves_a_run_as_any_other(joint, small_run, tmp_path):
    assert {state for _, state in list_stages(joint)} == {"done"}
    recipe = read_recipe(joint)
    assert (recipe.classifier.epochs, recipe.lstm.epochs) == (1, 1)
    for fold in (0, 1):
        source = json.loads((joint.joint(fold) / "source.json").read_text())["begun_from"]
        assert source == {
            "classifier": hash_file(small_run.classifier(fold) / "epoch1.safetensors"),
            "sequence": hash_file(small_run.lstm(fold, 1) / "epoch2.safetensors"),
        }
        for name in ("classifier.safetensors", "checkpoint.safetensors", "epoch1.safetensors"):
            assert not (joint.joint(fold) / name).exists()
    members = list_members(joint, recipe)
    assert [*members] == [joint.classifier(fold) / "epoch1.safetensors" for fold in (0, 1)]
    assert export_runs([joint], tmp_path / "weights")["folds"] == [0, 1]
    assert joint.slices.read_bytes() == small_run.slices.read_bytes()
    oof, before = pd.read_parquet(joint.oof), pd.read_parquet(small_run.oof)
    assert oof["SOPInstanceUID"].tolist() == before["SOPInstanceUID"].tolist()
    assert (oof["fold"] == before["fold"]).all()


def test_its_page_and_its_weights_say_how_it_was_trained(joint, tmp_path):
    facts = dict(read_data(joint.report)["facts"])
    said = "classifier and LSTM as one network, 1 epoch from the models of the run run"
    assert facts["joint training"] == describe_joint(joint) == said
    histories = read_data(joint.report)["histories"]
    assert [(h["kind"], h["fold"]) for h in histories] == [("joint model", n) for n in "01"]
    assert all(h["validation"][0] > 0 for h in histories)
    export_runs([joint], tmp_path / "weights")
    provenance = read_provenance(Run(tmp_path / "weights"))
    assert provenance["name"] == "recipe demo, trained as one network"
    assert provenance["synthetic"]


def test_its_stages_have_nothing_left_to_do(joint):
    """They neither train its halves apart nor refuse them."""
    before = {p: p.stat().st_mtime_ns for p in joint.path.rglob("*.safetensors")}
    assert pipeline.fit_classifier(joint, 0)["epoch"].tolist() == [1]
    assert pipeline.embed(joint, 0)["slices"].item() == len(read_slices(joint))
    history = pipeline.fit_lstm(joint, 0)
    assert history[["classifier_epoch", "epoch"]].to_numpy().tolist() == [[1, 1]]
    assert {p: p.stat().st_mtime_ns for p in joint.path.rglob("*.safetensors")} == before


def test_the_predictions_of_the_stages_are_those_of_the_one_network(joint):
    """By the store, whose embeddings are the mean over three views, in float16."""
    halves = joint.classifier(0) / "epoch1.safetensors", joint.lstm(0, 1) / "epoch1.safetensors"
    model = JointStart(CONFIG, *halves).make_model().eval()
    embed = model.classifier.embed
    model.classifier.embed = lambda images: model.classifier.embed_views(images, embed)
    slices = read_slices(joint)
    slices = slices[(slices["split"] == "train") & (slices["fold"] == 0)].reset_index(drop=True)
    stored = pd.read_parquet(joint.predictions(0, 1, 1)).set_index("SOPInstanceUID")
    series = SeriesImages(slices, model.classifier.config, False, 0, None)
    rows = series.list_rows([np.arange(4)])[0]
    (batch,) = series.make_batches(1, [np.arange(4)], workers=0)
    with torch.inference_mode():
        logits, _, _ = model(batch["image"], batch["parts"], batch["mask"])
    found = logits[batch["mask"]].sigmoid().numpy()
    expected = stored.loc[slices.loc[rows, "SOPInstanceUID"], list(LABELS)].to_numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_stopped_at_any_batch_it_goes_on_to_the_same_bytes(joint, small_run, tmp_path):
    out, stops = Run(tmp_path / "run"), 0
    while stops < 100:
        try:
            train_joint(small_run, out, CONFIG, workers=0, deadline=time.monotonic())
            break
        except OutOfTime:
            stops += 1
    assert stops > 3
    for name in ("submission", "oof"):
        assert getattr(out, name).read_bytes() == getattr(joint, name).read_bytes()


def test_folds_can_be_trained_one_by_one(joint, small_run, tmp_path):
    out = copy_run(joint, tmp_path / "run")
    shutil.rmtree(out.path / "fold1")
    for path in (out.metrics, out.report, out.submission):
        path.unlink()
    assert len(train_joint(small_run, out, CONFIG, [0], workers=0)) == 0
    assert not out.metrics.exists()
    assert dict(list_stages(out))["fold 1 joint model"] == "to do"
    assert len(train_joint(small_run, out, CONFIG, [1], workers=0)) > 0
    assert out.submission.read_bytes() == joint.submission.read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"slice_weight": 0.25}, r"begun with options.slice_weight = 0.5, not 0.25: name another"),
        ({"epochs": 2}, r"begun with options.epochs = 1, not 2: name another"),
    ],
)
def test_other_options_are_refused(joint, small_run, change, reason):
    with pytest.raises(RunError, match=reason):
        begin_joint(small_run, joint, replace(CONFIG, **change), [0])


def test_what_cannot_be_trained_jointly_is_refused_before_anything_is_written(
    joint, small_run, weights, tmp_path
):
    out = Run(tmp_path / "out")
    for run, target, reason in (
        (small_run, small_run, "the joint models need a run directory of their own"),
        (Run(weights), out, "has no slice table, as exported and fetched models"),
        (joint, small_run, "is another run: --out names a new directory"),
        (Run(tmp_path), out, "there is no run here"),
    ):
        with pytest.raises(RunError, match=reason):
            begin_joint(run, target, CONFIG, [0])
    assert not out.path.exists()
    run = copy_run(small_run, tmp_path / "run")
    for path, command in (
        (run.lstm(1, 1) / "epoch2.safetensors", "kit train-lstm .*/run --fold 1"),
        (run.classifier(1) / "epoch1.safetensors", "kit train-classifier .*/run --fold 1"),
    ):
        path.unlink()
        with pytest.raises(RunError, match=f"{path.name} is missing: run `{command}` first"):
            begin_joint(run, out, CONFIG, [0, 1])
    assert not out.path.exists()
    begin_joint(run, out, CONFIG, [0])
    with pytest.raises(RunError, match=r"trained as one: run `kit train-joint .*/run --out .*/out"):
        pipeline.fit_classifier(out, 1)


def test_other_weights_than_it_began_with_are_refused(joint, small_run, tmp_path):
    out = copy_run(joint, tmp_path / "out")
    (out.joint(0) / "history.json").unlink()
    run = copy_run(small_run, tmp_path / "run")
    shutil.copy(run.lstm(1, 1) / "epoch2.safetensors", run.lstm(0, 1) / "epoch2.safetensors")
    with pytest.raises(RunError, match=r"fold0/joint was begun with other weights than the run"):
        train_joint(run, out, CONFIG, [0], workers=0)


def test_trained_again_it_predicts_again(joint, small_run, tmp_path):
    out = copy_run(joint, tmp_path / "out")
    stale = out.predictions(0, 1, 1)
    expected = stale.read_bytes()
    table = pd.read_parquet(stale)
    table[list(LABELS)] = 0.999
    table.to_parquet(stale)
    shutil.rmtree(out.joint(0))
    train_joint(small_run, out, CONFIG, [0], workers=0)
    assert stale.read_bytes() == expected


def test_it_can_begin_with_the_backbone_alone(small_run, tmp_path):
    out = Run(tmp_path / "out")
    config = replace(CONFIG, from_backbone=True)
    train_joint(small_run, out, config, [0], workers=0)
    assert json.loads((out.joint(0) / "source.json").read_text()) == {"begun_from": {}}
    weights, _ = load_weights(out.lstm(0, 1) / "epoch1.safetensors")
    assert "embedding_mean" not in weights  # of embeddings that were not known
    before = load_classifier(small_run.classifier(0) / "epoch1.safetensors").state_dict()
    after = load_classifier(out.classifier(0) / "epoch1.safetensors").state_dict()
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_precision_is_that_of_the_classifier_unless_it_is_given(small_run):
    recipe = read_recipe(small_run)
    recipe = replace(recipe, classifier=replace(recipe.classifier, opt_level="O2"))
    assert find_options(recipe, {}).opt_level == "O2"
    assert find_options(recipe, {"opt_level": "O0", "epochs": 3}).opt_level == "O0"
