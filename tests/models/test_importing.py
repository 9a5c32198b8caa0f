"""Releases become run directories: the released values, through files and commands; errors."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import kit
from conftest import shared
from dicom_files import write_nifti, write_slice
from released_models import blocks, shrink_ianpan, write_appian, write_ianpan
from report_pages import read_data
from safetensors.torch import load_file, save_file

from kit import InputError, KitError, pipeline
from kit.classifier import load_classifier
from kit.cli.commands import main
from kit.competition import LABELS
from kit.embeddings import extract_embeddings
from kit.ensemble import name_columns
from kit.files import hash_file
from kit.images import SliceDataset, join_neighbours, stack_slices
from kit.models.importing import import_model
from kit.recipes import find_recipe
from kit.runs.directory import Run, RunError, read_config, read_recipe
from kit.runs.export import check_export, export_runs
from kit.runs.prediction import load_model, predict
from kit.runs.provenance import read_provenance
from kit.slices import index_slices
from kit.training.checkpoints import load_weights, save_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ianpan(tmp_path_factory):
    """The released model at full size with drawn weights, imported by the command line."""
    release = write_ianpan(tmp_path_factory.mktemp("ianpan") / "release")
    out = release.with_name("model")
    done = kit("import-model", release, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "MIT" in done.stdout
    assert "e6d89c2" in done.stdout
    return out


def write_volume(folder, hounsfield):
    """A series of DICOM files of HU (T, rows, cols), 5 mm apart."""
    for z, stored in enumerate(hounsfield):
        place = {"ImagePositionPatient": [0, 0, 5 * z], "InstanceNumber": len(hounsfield) - z}
        stored = (stored + 1024).astype(np.uint16)
        write_slice(folder / f"{z}.dcm", stored, SOPInstanceUID=f"1.{z}", RescaleIntercept=-1024,
                    BitsStored=12, **place)  # fmt: skip
    return folder


@pytest.mark.parametrize("slices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_scans_give_the_released_values_by_the_command_line(ianpan, tmp_path, slices):
    values = np.load(shared("golden/ianpan.npz"))
    scans = write_volume(tmp_path / "scans", blocks((slices, 512, 512), 1 + slices))
    out = tmp_path / "series.csv"
    done = kit("predict", scans, "--run", ianpan, "--out", out, "--by", "series")
    assert done.returncode == 0, done.stderr
    row = pd.read_csv(out).iloc[0]
    highest = row[[f"{label}_maximum" for label in LABELS]].astype(float)
    np.testing.assert_allclose(highest, values[f"series{slices}_slices"].max(0), atol=1e-5)
    series = row[list(LABELS)].astype(float)
    np.testing.assert_allclose(series, values[f"series{slices}_series"], atol=1e-5)


def test_the_embedding_is_the_released_one_and_timms_own_pooling_is_not(ianpan, tmp_path):
    values = np.load(shared("golden/ianpan.npz"))
    write_volume(tmp_path, blocks((1, 512, 512), 2))
    model = load_classifier(ianpan / "foldall/classifier/epoch1.safetensors")
    dataset = SliceDataset(index_slices(tmp_path)[0], model.config)
    seen = join_neighbours(stack_slices([dataset[0]["slices"]]))
    with torch.inference_mode():
        normalized = (seen.permute(0, 3, 1, 2) - model.mean) / model.std
        maps = model.backbone.forward_features(normalized)
        head = model.backbone.head
        found = head.pre_logits(head.norm(maps)).mean(dim=(2, 3))
        logits = model.head(found)
        pooled = head.pre_logits(head.norm(maps).mean(dim=(2, 3), keepdim=True)).flatten(1)
    np.testing.assert_allclose(found, values["series1_features"], atol=1e-4)
    np.testing.assert_allclose(logits, values["series1_base"], atol=1e-4)
    assert np.abs(pooled - values["series1_features"]).max() > 0.01


@pytest.fixture(scope="module")
def appian(tmp_path_factory):
    """A released classifier with drawn weights, imported by the command line."""
    release = write_appian(tmp_path_factory.mktemp("appian") / "fold0_ep3.pt")
    out = release.with_name("model")
    done = kit("import-model", release, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "kit run DATA --recipe single" in done.stdout
    return out


def test_a_classifier_alone_gives_the_released_values(appian, tmp_path):
    values = np.load(shared("golden/appian.npz"))
    scans = write_volume(tmp_path / "scans", blocks((3, 512, 512), 51))
    slices, _ = index_slices(scans)
    weights = appian / "foldall/classifier/epoch1.safetensors"
    store = extract_embeddings(slices, weights, tmp_path / "store", CPU, 0)
    np.testing.assert_allclose(store.embeddings, values["embeddings"], atol=1e-3)  # float16
    np.testing.assert_allclose(store.logits, values["logits_kit_order"], atol=1e-4)
    # The trap: with the kit's own normalization the weights load without complaint.
    tensors, metadata = load_weights(weights)
    for name in ("mean", "std", "scale", "crop", "subtract_minimum"):
        metadata["config"].pop(name)
    save_tensors(tmp_path / "wrong.safetensors", tensors, metadata)
    wrong = extract_embeddings(slices, tmp_path / "wrong.safetensors", tmp_path / "2", CPU, 0)
    assert np.abs(wrong.logits - values["logits_kit_order"]).max() > 0.01


def test_a_classifier_alone_says_what_it_lacks_where_it_is_to_predict(appian, tmp_path):
    for use in (load_model, lambda path: export_runs([Run(path)], tmp_path / "out")):
        with pytest.raises(RunError, match=rf"alone, .* --recipe single --run {appian} trains one"):
            use(appian)


def small_release(folder, monkeypatch):
    shrink_ianpan(monkeypatch)
    return write_ianpan(folder)


def test_a_release_is_known_by_what_is_there_and_nothing_in_it_is_run(tmp_path, monkeypatch):
    release = small_release(tmp_path / "release", monkeypatch)
    run = import_model(release, tmp_path / "model")
    config = read_config(run)
    assert config["provenance"]["licence"] == "MIT"
    assert config["provenance"]["files"]["foldall/classifier/epoch1.safetensors"]["sha256"]
    assert {path.name for path in run.path.rglob("*") if path.is_file()} == {
        "config.json", "kit-run.json", "epoch1.safetensors",
    }  # fmt: skip
    manifest = check_export(run.path)
    assert manifest["provenance"] == config["provenance"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "release"]


def test_an_imported_model_is_exported_for_notebooks_and_predicts_the_same(
    small_data, tmp_path, monkeypatch
):
    release = small_release(tmp_path / "release", monkeypatch)
    run, out = import_model(release, tmp_path / "model"), tmp_path / "dataset"
    manifest = export_runs([run], out)
    assert manifest["provenance"]["name"] == "ianpan"
    assert check_export(out)["provenance"] == read_provenance(Run(out))
    scans = sorted((small_data / "stage_2_test").iterdir())[:6]
    for path in scans:
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "scans")
    tables = [predict(tmp_path / "scans", folder, workers=1) for folder in (run.path, out)]
    found, expected = (table[list(LABELS)].to_numpy() for table in tables)
    np.testing.assert_allclose(found, expected, atol=5e-3)  # weights in float16


def test_an_imported_model_predicts_a_real_head_and_is_named(tmp_path, monkeypatch):
    scans, page = shared("data/dcm_qa_ct/GE"), tmp_path / "out.html"
    run = import_model(small_release(tmp_path / "release", monkeypatch), tmp_path / "model")
    out = tmp_path / "out.csv"
    flags = ["--out", str(out), "--run", str(run), "--report", "--workers", "1"]
    assert main(["predict", str(scans), *flags]) == 0
    table = pd.read_csv(out)
    assert len(table) == len(list(scans.glob("*.dcm")))
    assert ((table[list(LABELS)] > 0) & (table[list(LABELS)] < 1)).all(axis=None)
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert manifest["provenance"]["source"] == "huggingface.co/ianpan/ct-head-hemorrhage-detection"
    data = read_data(page)
    assert ["licence", "MIT"] in data["model"]
    assert data["windows"] == [[40, 80], [80, 200], [600, 2800]]
    assert data["warning"] is None
    write_nifti(scans, tmp_path / "head.nii.gz")
    other = tmp_path / "nifti.csv"
    flags = ["--out", str(other), "--run", str(run), "--workers", "1"]
    assert main(["predict", str(tmp_path / "head.nii.gz"), *flags]) == 0
    volume = pd.read_csv(other)
    names = [*LABELS, *name_columns("classifier")]
    np.testing.assert_allclose(volume[names], table[names], atol=1e-5)
    assert volume["seq"].tolist() == table["seq"].tolist()


def test_a_classifier_alone_is_embedded_and_gets_the_kits_lstm(small_data, tmp_path, monkeypatch):
    release = small_release(tmp_path / "release", monkeypatch)
    run = import_model(release, tmp_path / "run", classifier_only=True)
    with pytest.raises(RunError, match="a classifier alone, without a model over"):
        load_model(run.path)
    weights = run.path / "foldall/classifier/epoch1.safetensors"
    before = hash_file(weights)
    flags = ["--run", str(run), "--recipe", "single", "--lstm-hidden-size", "8", "--workers", "1"]
    flags += ["--lstm-epochs", "2", "--lstm-opt-level", "O0"]
    assert main(["index", str(small_data), *flags]) == 0
    assert main(["index", str(small_data), *flags]) == 0  # goes on
    for command in ("embed", "train-lstm", "ensemble"):
        assert main([command, str(run)]) == 0
    assert hash_file(weights) == before
    assert run.submission.exists()
    assert read_provenance(run)["name"] == "ianpan"
    assert len(load_model(run.path).members) == 1
    assert main(["run", str(small_data), *flags]) == 0
    assert hash_file(weights) == before
    whole = import_model(release, tmp_path / "whole")
    with pytest.raises(RunError, match="a complete model"):
        pipeline.index(small_data, find_recipe("single"), whole)


SEQUENCE = "sequence/model.safetensors"


def rewrite(path, change):
    tensors = load_file(path)
    save_file(change(tensors), path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / SEQUENCE).unlink(), r"sequence/model\.safetensors is missing"),
        (lambda f: rewrite(f / SEQUENCE, lambda t: {k: v + 1 for k, v in t.items()}),
         "is not the released file: its checksum is another"),
        (lambda f: (f / "checksums.json").write_text("{}"), "does not list"),
        (lambda f: (f / "checksums.json").write_text("[1]"), "not a list of checksums"),
    ],
)  # fmt: skip
def test_a_release_that_is_not_whole_is_refused_by_name(tmp_path, monkeypatch, damage, reason):
    release = small_release(tmp_path / "release", monkeypatch)
    damage(release)
    with pytest.raises(InputError, match=reason):
        import_model(release, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {f"module.{k}": v for k, v in t.items()},
         "holds no weights 'backbone.*'; its names begin with module"),
        (lambda t: {k: v for k, v in t.items() if k != "linear.bias"},
         "holds no weights 'linear.bias'; its names begin with backbone, linear"),
        (lambda t: {**t, "extra.weight": torch.zeros(1)}, "holds 'extra.weight', for which"),
        (lambda t: {**t, "linear.bias": torch.zeros(5)}, r"linear.bias is \(5,\), not \(6,\)"),
        (lambda t: {**t, "linear.bias": torch.full((6,), torch.nan)}, "are not finite"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_with_the_names_met(
    tmp_path, monkeypatch, change, reason, caplog
):
    release = small_release(tmp_path / "release", monkeypatch)
    (release / "checksums.json").unlink()
    rewrite(release / "classifier/model.safetensors", change)
    with pytest.raises(KitError, match=reason):
        import_model(release, tmp_path / "model")
    assert "not checked" in caplog.text


def test_other_folders_files_and_kinds_are_refused_by_name(tmp_path, monkeypatch):
    release = small_release(tmp_path / "release", monkeypatch)
    (tmp_path / "empty").mkdir()
    for source, kind, reason in (
        (tmp_path / "empty", None, "not a release that kit knows: it would be a folder with"),
        (release, "appian", r"it would be a file fold0_ep2\.pt"),
        (release, "seutao", "there is no kind 'seutao'; there are ianpan, appian"),
    ):
        with pytest.raises(InputError, match=reason):
            import_model(source, tmp_path / "model", kind)
    with pytest.raises(FileNotFoundError):
        import_model(tmp_path / "gone", tmp_path / "model")
    with pytest.raises(InputError, match="release exists: name another"):
        import_model(release, release)


class Evil:
    def __reduce__(self):
        return print, ("this was run",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    path = tmp_path / "fold0_ep3.pt"
    torch.save({"model": {}, "detail": Evil()}, path)
    with pytest.raises(InputError, match="not weights that can be read safely"):
        import_model(path, tmp_path / "model")
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match="not weights that can be read safely"):
        import_model(path, tmp_path / "model")
    torch.save({"weights": {}}, path)
    with pytest.raises(InputError, match="holds no weights under 'model'"):
        import_model(path, tmp_path / "model")
    assert "this was run" not in capsys.readouterr().out


def test_several_files_become_several_classifiers_of_their_own_depth(tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    write_appian(folder / "fold0_ep2.pt", "legacy_seresnext101_32x4d")
    write_appian(folder / "fold1_ep2.pt", "legacy_seresnext101_32x4d")
    run = import_model(folder, tmp_path / "model", "appian")
    recipe = read_recipe(run)
    assert (recipe.bag_classifier_epochs, recipe.classifier.image_size) == (2, 480)
    assert recipe.classifier.architecture == "legacy_seresnext101_32x4d"
    files = read_config(run)["provenance"]["files"]
    assert files["foldall/classifier/epoch2.safetensors"]["name"] == "fold1_ep2.pt"
    load_classifier(run.classifier("all") / "epoch2.safetensors")
