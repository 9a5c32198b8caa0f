import hashlib

import pytest
from conftest import copy_run
from released_models import shrink_ianpan, write_ianpan

from kit.files import write_json
from kit.models.importing import import_model
from kit.runs.directory import Run, RunError, list_folds, read_recipe
from kit.runs.export import check_export, export_runs
from kit.runs.patients import is_from_elsewhere, read_patients, write_patients
from kit.runs.tables import read_slices


def hash_all(names):
    return {hashlib.sha256(name.encode()).hexdigest() for name in names}


def test_a_run_keeps_the_hashed_ids_of_its_training_patients(small_run):
    slices = read_slices(small_run)
    training = hash_all(slices.loc[slices["split"] == "train", "PatientID"].unique())
    test = hash_all(slices.loc[slices["split"] == "test", "PatientID"].unique())
    assert small_run.patients.exists()
    assert read_patients(small_run) == training
    assert not training & test
    assert slices["PatientID"].iloc[0] not in small_run.patients.read_text()


def test_a_run_of_version_0_1_0_tells_them_by_its_slices(copied_run):
    assert not copied_run.patients.exists()
    found = read_patients(copied_run)
    write_patients(copied_run, read_slices(copied_run))
    assert read_patients(copied_run) == found
    assert found


def test_a_run_without_either_does_not_say(tmp_path):
    assert read_patients(Run(tmp_path)) is None
    Run(tmp_path).patients.write_text('{"sha256": 3}', encoding="utf-8")
    with pytest.raises(RunError, match=r"patients\.json: not the hashed ids"):
        read_patients(Run(tmp_path))


def test_an_export_takes_them_along(small_run, weights, tmp_path):
    assert read_patients(Run(weights)) == read_patients(small_run)
    # An export made earlier from another run leaves nothing behind.
    Run(tmp_path).calibration.write_text("{}", encoding="utf-8")
    export_runs([small_run], tmp_path)
    assert not Run(tmp_path).calibration.exists()
    Run(tmp_path).patients.unlink()  # as before weights are published
    check_export(tmp_path)
    assert read_patients(Run(tmp_path)) is None


def test_a_run_knows_that_its_classifier_was_trained_elsewhere(
    small_run, weights, tmp_path, monkeypatch
):
    for own in (small_run, Run(weights)):
        assert not is_from_elsewhere(own)
    shrink_ianpan(monkeypatch)
    write_ianpan(tmp_path / "release")
    imported = import_model(tmp_path / "release", tmp_path / "model")
    assert is_from_elsewhere(imported)
    export_runs([imported], tmp_path / "dataset")
    assert is_from_elsewhere(Run(tmp_path / "dataset"))
    run = copy_run(small_run, tmp_path / "run")
    recipe = read_recipe(run)
    store = run.store(list_folds(recipe)[0], recipe.classifier.epochs)
    store.mkdir(parents=True, exist_ok=True)
    write_json(store / "store.json", {"imported": ["e.npz"]})
    assert is_from_elsewhere(run)
