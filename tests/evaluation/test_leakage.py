import pandas as pd
import pytest
from evaluation_files import make_cases, write_studies

from kit import InputError
from kit.evaluation.cases import match_cases
from kit.evaluation.inputs import read_labels_table, read_predictions
from kit.evaluation.leakage import exclude_seen, hash_patient
from kit.evaluation.presets import PRESETS


def hash_all(*patients):
    return frozenset(map(hash_patient, patients))


def match_studies(folder, patients, preset="scan", predicted=None, labelled=None):
    """Match studies whose PatientIDs are `predicted` in one file and `labelled` in the other."""
    paths = write_studies(folder, patients)
    for path, names in zip(paths, (predicted, labelled), strict=True):
        if names is not None:
            pd.read_csv(path).assign(PatientID=names).to_csv(path, index=False)
    predictions = PRESETS[preset].adapt(read_predictions(paths[0]))
    return match_cases(predictions, read_labels_table(paths[1]), "study")


def test_patients_the_run_was_trained_on_stop_it_or_are_left_out(tmp_path):
    cases = make_cases(tmp_path, 6)
    seen = hash_all("p1", "p4", "elsewhere")
    with pytest.raises(InputError, match=r"trained on 2 of the 6 patients.*--exclude-seen"):
        exclude_seen(cases, seen, False)
    kept = exclude_seen(cases, seen, True)
    assert kept.patients.tolist() == ["p0", "p2", "p3", "p5"]
    assert "2 patients (2 of 6 rows by study)" in kept.notes[-1]
    assert "none of these patients" in exclude_seen(cases, frozenset(), False).notes[-1]
    with pytest.raises(InputError, match="all patients"):
        exclude_seen(cases, hash_all(*cases.patients), True)


def test_a_patient_that_the_labels_rename_is_recognized_by_the_predictions_name(tmp_path):
    cases = match_studies(tmp_path, 3, labelled=["a", "b", "c"])
    assert cases.patients.tolist() == ["a", "b", "c"]
    assert exclude_seen(cases, hash_all("p1"), True).patients.tolist() == ["a", "c"]
    assert exclude_seen(cases, hash_all("b"), True).patients.tolist() == ["a", "c"]


def test_all_rows_of_a_patient_go_with_the_one_that_is_recognized(tmp_path):
    cases = match_studies(tmp_path, 3, predicted=["p0", "", "q"], labelled=["x", "x", "y"])
    assert exclude_seen(cases, hash_all("p0"), True).patients.tolist() == ["y"]


def test_rows_without_a_patient_are_counted_and_hide_no_other(tmp_path):
    cases = match_studies(tmp_path, 4, predicted=["p0", "", "p2", "p3"], labelled=[""] * 4)
    with pytest.raises(InputError, match=r"trained on 1 of the 4 patients"):
        exclude_seen(cases, hash_all("p2"), False)
    kept = exclude_seen(cases, hash_all("p2"), True)
    assert len(kept.ids) == 3
    assert "1 patient (1 of 4 rows by study)" in kept.notes[-2]
    assert "is unknown for 1 of 3 rows by study: no PatientID is given" in kept.notes[-1]


@pytest.mark.parametrize(
    ("preset", "predicted", "trained"),
    [
        ("cq500", "CQ500CT12 CQ500CT12", "CQ500CT12 CQ500CT12"),
        ("cq500", "CQ500-CT-12", "CQ500CT12 CQ500CT12"),
        ("cq500", "CQ500CT12 CQ500CT12", "CQ500-CT-12"),
        ("cq500", "CQ500CT12", "CQ500-CT-12"),
        ("scan", "049", "49"),
        ("scan", "49", "049"),
        ("scan", "049.nii", "049"),
    ],
)
def test_other_forms_of_a_public_sets_names_are_recognized(tmp_path, preset, predicted, trained):
    cases = match_studies(
        tmp_path, 2, preset, predicted=[predicted, "CQ500CT9"], labelled=["a", "b"]
    )
    assert exclude_seen(cases, hash_all(trained), True).patients.tolist() == ["b"]
    assert len(exclude_seen(cases, hash_all("CQ500CT120", "490", "4"), True).ids) == 2


def test_the_name_that_a_preset_replaces_is_still_recognized(tmp_path):
    predictions, labels = write_studies(tmp_path, 2)
    table = pd.read_csv(predictions).assign(path=["/q/CQ500CT12/1.dcm", "/q/CQ500CT13/1.dcm"])
    table.to_csv(predictions, index=False)
    names = ["CQ500-CT-12", "CQ500-CT-13"]
    pd.read_csv(labels).assign(PatientID=names).to_csv(labels, index=False)
    adapted = PRESETS["cq500"].adapt(read_predictions(predictions))
    cases = match_cases(adapted, read_labels_table(labels), "patient")
    assert cases.ids.tolist() == names
    assert exclude_seen(cases, hash_all("p0"), True).ids.tolist() == names[1:]


def test_pseudonyms_are_not_taken_for_patients_that_are_new(tmp_path):
    names = ["patient1", "patient2", "patient3"]
    cases = match_studies(tmp_path, 3, predicted=names, labelled=[""] * 3)
    assert "is unknown for 3 of 3" in exclude_seen(cases, frozenset(), False).notes[-1]


def test_without_any_patient_nothing_is_known(tmp_path):
    cases = match_studies(tmp_path, 3, predicted=[""] * 3, labelled=[""] * 3)
    notes = exclude_seen(cases, hash_all("p1", "", "nan"), False).notes
    assert "is unknown for 3 of 3" in notes[-1]
    assert not any("none of these patients" in note for note in notes)


def test_a_hash_is_the_sha256_of_the_id_without_blanks_around_it():
    digest = "5859a2460caab7c2b37b14debc8da86766b12c559c6953ed08781b14902a7084"
    assert hash_patient(" ID_1 ") == digest  # echo -n ID_1 | sha256sum
