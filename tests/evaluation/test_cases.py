from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation_files import make_cases

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.cases import add_model, exclude_seen, hash_patient, match_cases
from kit.evaluation.inputs import WHOLE, Labels, Predictions

ANY = LABELS.index("any")


def make_predictions(**columns):
    table = pd.DataFrame(columns).rename(columns={"any": f"{WHOLE}_any"})
    unit = "slice" if "SOPInstanceUID" in table else "study"
    return Predictions(table, unit, [WHOLE])


def make_labels(unit, **columns):
    return Labels(pd.DataFrame(columns), unit, {}, [])


SLICES = {
    "SOPInstanceUID": list("abcdef"),
    "SeriesInstanceUID": ["s1", "s1", "s2", "s3", "s3", "s3"],
    "StudyInstanceUID": ["1", "1", "1", "2", "2", "2"],
    "PatientID": ["p", "p", "p", "q", "q", "q"],
    "seq": ["1", "2", "1", "1", "2", "3"],
    "any": [0.1, 0.3, 0.7, 0.2, 0.5, 0.4],
}


def test_a_study_has_the_highest_probability_and_names_the_series_that_gave_it():
    labels = make_labels("study", StudyInstanceUID=["2", "1"], any=[0.0, 1.0])
    cases = match_cases(make_predictions(**SLICES), labels, "study")
    assert cases.ids.tolist() == ["1", "2"]
    assert cases.models[WHOLE][:, ANY].tolist() == [0.7, 0.5]
    assert cases.labels[:, ANY].tolist() == [1, 0]
    assert cases.details["series"].tolist() == ["s2", "s3"]
    assert cases.details["series_count"].tolist() == [2, 1]
    assert cases.patients.tolist() == ["p", "q"]


def test_a_study_is_positive_where_one_of_its_labelled_slices_is():
    """Slice e is unlabelled: study 2 is unknown. Slice x, positive, has no prediction."""
    labels = make_labels(
        "slice",
        SOPInstanceUID=["a", "b", "c", "d", "e", "f", "x"],
        any=[0, 1, 0, 0, np.nan, 0, 1],
    )
    cases = match_cases(make_predictions(**SLICES), labels, "study")
    np.testing.assert_array_equal(cases.labels[:, ANY], [1, np.nan])
    assert cases.unmatched.values.tolist() == [["x", "slice", "labels"]]


def test_labels_that_name_their_study_count_even_without_a_prediction():
    labels = make_labels(
        "slice",
        SOPInstanceUID=["a", "d", "x"],
        StudyInstanceUID=["1", "2", "2"],
        any=[0.0, 0.0, 1.0],
    )
    cases = match_cases(make_predictions(**SLICES), labels, "study")
    assert cases.labels[:, ANY].tolist() == [0, 1]


def test_ids_that_do_not_match_are_listed_from_both_sides():
    labels = make_labels("study", StudyInstanceUID=["2", "3"], any=[0.0, 1.0])
    cases = match_cases(make_predictions(**SLICES), labels, "study")
    assert cases.ids.tolist() == ["2"]
    assert cases.unmatched.values.tolist() == [
        ["1", "study", "predictions"],
        ["3", "study", "labels"],
    ]


def test_ids_of_which_none_matches_are_refused_with_examples():
    labels = make_labels("study", StudyInstanceUID=["x"], any=[0.0])
    with pytest.raises(InputError, match=r"no study is in both.*'1'.*'x'"):
        match_cases(make_predictions(**SLICES), labels, "study")


def test_a_unit_that_a_file_says_nothing_about_is_refused():
    by_study = make_labels("study", StudyInstanceUID=["1"], any=[0.0])
    with pytest.raises(InputError, match="labels are by study: they say nothing about a single sl"):
        match_cases(make_predictions(**SLICES), by_study, "slice")
    by_slice = make_labels("slice", SOPInstanceUID=["a"], any=[0.0])
    without = make_predictions(SOPInstanceUID=["a"], any=[0.5])
    with pytest.raises(InputError, match="have no StudyInstanceUID"):
        match_cases(without, by_slice, "study")


def test_slices_know_where_in_their_series_they_lie():
    labels = make_labels("slice", SOPInstanceUID=list("abcdef"), any=[0.0] * 6)
    cases = match_cases(make_predictions(**SLICES), labels, "slice")
    assert cases.details["relative_position"].tolist() == [0, 1, 0, 0, 0.5, 1]


def test_columns_of_both_files_describe_a_unit():
    labels = make_labels("study", StudyInstanceUID=["1", "2"], any=[0.0, 1.0], site=["x", "y"])
    kernels = ["H30", "H30", "H60", "H60", "H60", "H60"]
    cases = match_cases(make_predictions(**SLICES, kernel=kernels), labels, "study")
    assert cases.details["site"].tolist() == ["x", "y"]
    assert cases.details["kernel"].tolist() == ["several values", "H60"]


def test_the_labels_patients_count_where_the_predictions_have_pseudonyms(tmp_path):
    labels = make_labels(
        "study", StudyInstanceUID=["1", "2"], PatientID=["real1", "real2"], any=[0.0, 1.0]
    )
    assert match_cases(make_predictions(**SLICES), labels, "study").patients.tolist() == [
        "real1",
        "real2",
    ]


def test_without_patients_each_study_stands_for_one_and_that_is_said():
    columns = {name: values for name, values in SLICES.items() if name != "PatientID"}
    labels = make_labels("study", StudyInstanceUID=["1", "2"], any=[0.0, 1.0])
    cases = match_cases(make_predictions(**columns), labels, "study")
    assert cases.patients.tolist() == ["1", "2"]
    assert not cases.identified
    assert "each study counts as a patient" in cases.notes[0]
    assert "unknown" in exclude_seen(cases, frozenset(), False).notes[-1]


def test_another_model_is_paired_and_what_it_lacks_is_listed(tmp_path):
    cases = make_cases(tmp_path, 6)
    table = pd.DataFrame({"StudyInstanceUID": ["1.2.3", "1.2.1"], f"{WHOLE}_any": [0.25, 0.75]})
    both = add_model(cases, "other.csv", Predictions(table, "study", [WHOLE]))
    assert both.ids.tolist() == ["1.2.1", "1.2.3"]
    assert both.models["other.csv"][:, ANY].tolist() == [0.75, 0.25]
    assert both.models[WHOLE].tolist() == cases.models[WHOLE][[1, 3]].tolist()
    assert set(both.unmatched["id"]) == {"1.2.0", "1.2.2", "1.2.4", "1.2.5"}


def test_patients_the_run_was_trained_on_stop_it_or_are_left_out(tmp_path):
    cases = make_cases(tmp_path, 6)
    seen = frozenset(map(hash_patient, ["p1", "p4", "elsewhere"]))
    with pytest.raises(InputError, match=r"trained on 2 of the 6 patients.*--exclude-seen"):
        exclude_seen(cases, seen, False)
    kept = exclude_seen(cases, seen, True)
    assert kept.patients.tolist() == ["p0", "p2", "p3", "p5"]
    assert "2 patients (2 of 6 rows by study)" in kept.notes[-1]
    assert "none of these patients" in exclude_seen(cases, frozenset(), False).notes[-1]
    with pytest.raises(InputError, match="all patients"):
        exclude_seen(cases, frozenset(map(hash_patient, cases.patients)), True)


def test_pseudonyms_are_not_taken_for_patients_that_are_new(tmp_path):
    cases = make_cases(tmp_path, 3)
    renamed = replace(cases, patients=np.array(["patient1", "patient2", "patient3"]))
    assert "is unknown" in exclude_seen(renamed, frozenset(), False).notes[-1]


def test_a_hash_is_the_sha256_of_the_id_without_blanks_around_it():
    digest = "5859a2460caab7c2b37b14debc8da86766b12c559c6953ed08781b14902a7084"
    assert hash_patient(" ID_1 ") == digest  # echo -n ID_1 | sha256sum
