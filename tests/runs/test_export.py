"""Exported weights: what becomes half, what is refused, what is checked."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from kit.classifier import load_classifier
from kit.competition import LABELS, read_labels
from kit.recipes import find_recipe
from kit.runs.directory import Run, RunError, begin_run, read_recipe
from kit.runs.export import MANIFEST, check_export, export_runs, read_prior

CLASSIFIER, LSTM = "fold0/classifier/epoch1.safetensors", "fold1/lstm/epoch1/epoch2.safetensors"


@pytest.fixture(scope="module")
def export(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "weights"
    export_runs([small_run], folder)
    return folder


def _split(run: Run, fold: int, folder) -> Run:
    """A run of one fold, as a training notebook leaves it."""
    for part in ("classifier", "lstm"):
        shutil.copytree(run.path / f"fold{fold}" / part, folder / f"fold{fold}" / part)
    config = json.loads(run.config.read_text())
    config["recipe"]["train_folds"] = [fold]
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(run.slices, folder / "slices.parquet")
    return Run(folder)


@pytest.mark.parametrize("name", [CLASSIFIER, LSTM])
def test_matrices_are_halved_and_vectors_stay(small_run, export, name):
    whole, halved = load_file(small_run.path / name), load_file(export / name)
    assert whole.keys() == halved.keys()
    matrices = 0
    for key, value in whole.items():
        if value.ndim >= 2:
            matrices += 1
            assert torch.equal(halved[key], value.to(torch.float16)), key
        else:
            assert torch.equal(halved[key], value), key
    assert matrices > 4
    assert (export / name).stat().st_size < 0.6 * (small_run.path / name).stat().st_size


def test_the_classifier_computes_the_same_with_halved_weights(small_run, export):
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    )
    with torch.inference_mode():
        whole, halved = (
            load_classifier(folder / CLASSIFIER)(images) for folder in (small_run.path, export)
        )
    # A float16 has 11 bits: the relative error of a weight is at most 2^-11 = 0.0005.
    np.testing.assert_allclose(halved, whole, rtol=0.01, atol=0.01)


def test_what_float16_cannot_hold_stays_float32(small_run, tmp_path):
    from kit.runs.export import _halve

    large = torch.tensor([[1.0, 70000.0]])
    assert _halve(large).dtype == torch.float32
    assert _halve(large / 2).dtype == torch.float16


def test_the_manifest_says_what_the_weights_are(small_run, small_data, export):
    manifest = json.loads((export / MANIFEST).read_text())
    assert manifest["recipe"] == "demo"
    assert manifest["folds"] == [0, 1]
    metrics = json.loads(small_run.metrics.read_text())
    assert manifest["out_of_fold"] == metrics["scores"]["bag"]["all"]["weighted"]
    labels = read_labels(small_data / "stage_2_train.csv")
    readable = labels.drop(index=labels.index.difference(_readable(small_run)))
    expected = readable.mean()
    assert [manifest["prior"][label] for label in LABELS] == pytest.approx(
        expected[list(LABELS)].to_list(), abs=1e-6
    )
    # The data's place on this machine is nobody's business.
    assert "data" not in json.loads((export / "config.json").read_text())
    assert check_export(export) == manifest


def _readable(run: Run) -> list[str]:
    import pandas as pd

    slices = pd.read_parquet(run.slices)
    return slices.loc[slices["split"] == "train", "SOPInstanceUID"].to_list()


def test_runs_of_a_fold_each_become_one(small_run, export, tmp_path):
    parts = [_split(small_run, fold, tmp_path / str(fold)) for fold in (1, 0)]
    manifest = export_runs(parts, tmp_path / "joined")
    assert manifest["folds"] == [0, 1]
    assert read_recipe(Run(tmp_path / "joined")) == read_recipe(small_run)
    expected = json.loads((export / MANIFEST).read_text())["sha256"]
    found = manifest["sha256"]
    assert found.pop("config.json") != expected.pop("config.json")  # it names the run
    assert found == expected


def test_the_same_fold_twice_is_refused(small_run, tmp_path):
    part = _split(small_run, 0, tmp_path / "0")
    with pytest.raises(RunError, match="hold the same fold twice: export it once"):
        export_runs([small_run, part], tmp_path / "weights")


def test_runs_of_different_recipes_are_refused(small_run, tmp_path):
    other = Run(tmp_path / "other")
    begin_run(other, find_recipe("demo", {"seed": 5}), tmp_path)
    with pytest.raises(RunError, match="was trained by another recipe than"):
        export_runs([small_run, other], tmp_path / "weights")


def test_an_unfinished_run_is_refused(small_run, tmp_path):
    part = _split(small_run, 1, tmp_path / "1")
    (part.path / LSTM).unlink()
    with pytest.raises(RunError, match=r"epoch2.safetensors is missing"):
        export_runs([part], tmp_path / "weights")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_file_that_is_missing_or_damaged_is_named(export, tmp_path, damage):
    copy = tmp_path / "weights"
    shutil.copytree(export, copy)
    if damage == "missing":
        (copy / LSTM).unlink()
    else:
        (copy / LSTM).write_bytes((copy / LSTM).read_bytes()[:-8])
    with pytest.raises(RunError, match=rf"{LSTM} is {damage}: export and upload the weights again"):
        check_export(copy)


def test_a_folder_without_manifest_is_no_export(tmp_path):
    with pytest.raises(RunError, match="not a manifest of weights"):
        check_export(tmp_path)


def test_a_run_is_predicted_with_the_share_of_its_own_labels(small_run):
    slices = pd.read_parquet(small_run.slices)
    training = slices[slices["split"] == "train"]
    np.testing.assert_allclose(read_prior(small_run), training[list(LABELS)].mean(), atol=1e-6)
