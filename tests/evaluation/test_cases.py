import numpy as np
import pandas as pd
import pytest
from evaluation_files import make_cases

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.cases import add_model, match_cases
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
    assert cases.notes[-1].startswith("1 positive row by slice without a prediction, of an unknown")


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
    assert cases.notes == ["No PatientID: each study counts as a patient."]


def test_a_unit_without_a_patient_stands_for_one_of_its_own():
    columns = SLICES | {"PatientID": ["p", "p", "p", "", "", ""]}
    labels = make_labels("study", StudyInstanceUID=["1", "2"], any=[0.0, 1.0])
    cases = match_cases(make_predictions(**columns), labels, "study")
    assert cases.patients.tolist() == ["p", "2"]
    assert cases.notes[0].startswith("1 of 2 rows by study have no single PatientID: of these each")
    # A blank of the labels does not hide what the predictions say.
    labels.table["PatientID"] = ["", "real2"]
    cases = match_cases(make_predictions(**columns), labels, "study")
    assert cases.patients.tolist() == ["p", "real2"]


def test_another_model_is_paired_and_what_it_lacks_is_listed(tmp_path):
    cases = make_cases(tmp_path, 6)
    table = pd.DataFrame({"StudyInstanceUID": ["1.2.3", "1.2.1"], f"{WHOLE}_any": [0.25, 0.75]})
    both = add_model(cases, "other.csv", Predictions(table, "study", [WHOLE]))
    assert both.ids.tolist() == ["1.2.1", "1.2.3"]
    assert both.models["other.csv"][:, ANY].tolist() == [0.75, 0.25]
    assert both.models[WHOLE].tolist() == cases.models[WHOLE][[1, 3]].tolist()
    assert set(both.unmatched["id"]) == {"1.2.0", "1.2.2", "1.2.4", "1.2.5"}
    assert set(both.unmatched["found_in"]) == {"predictions and labels"}


def test_what_only_another_model_predicts_is_listed_too(tmp_path):
    cases = make_cases(tmp_path, 2)
    table = pd.DataFrame(
        {"StudyInstanceUID": ["1.2.0", "1.2.1", "x", ""], f"{WHOLE}_any": [0.5] * 4}
    )
    both = add_model(cases, "other.csv", Predictions(table, "study", [WHOLE]))
    assert both.unmatched.values.tolist() == [
        ["", "study", "--against"],
        ["x", "study", "--against"],
    ]


def test_another_model_by_slice_borrows_the_study_of_its_slices():
    labels = make_labels("study", StudyInstanceUID=["1", "2"], any=[0.0, 1.0])
    cases = match_cases(make_predictions(**SLICES), labels, "study")
    other = make_predictions(SOPInstanceUID=list("fab"), any=[0.9, 0.2, 0.1])
    both = add_model(cases, "other.csv", other)
    assert both.ids.tolist() == ["1", "2"]
    assert both.models["other.csv"][:, ANY].tolist() == [0.2, 0.9]
    by_series = Predictions(
        pd.DataFrame({"SeriesInstanceUID": ["s2", "s3"], f"{WHOLE}_any": [0.3, 0.4]}),
        "series",
        [WHOLE],
    )
    found = add_model(cases, "other.csv", by_series)
    assert found.models["other.csv"][:, ANY].tolist() == [0.3, 0.4]


def test_a_file_of_which_no_row_has_the_unit_is_refused():
    labels = make_labels("study", StudyInstanceUID=["1"], any=[0.0])
    blank = make_predictions(**SLICES | {"StudyInstanceUID": [""] * 6})
    with pytest.raises(InputError, match="no row of the predictions has a known StudyInstanceUID"):
        match_cases(blank, labels, "study")
    by_slice = make_labels("slice", SOPInstanceUID=["x", "y"], any=[0.0, 1.0])
    with pytest.raises(InputError, match="no row of the labels has a known StudyInstanceUID"):
        match_cases(make_predictions(**SLICES), by_slice, "study")


def test_a_blank_or_a_text_for_seq_has_no_position():
    labels = make_labels("slice", SOPInstanceUID=list("abcdef"), any=[0.0] * 6)
    columns = SLICES | {"seq": ["1", "", "1", "first", "2", "3"]}
    cases = match_cases(make_predictions(**columns), labels, "slice")
    places = cases.details["relative_position"]
    np.testing.assert_array_equal(places, [0, np.nan, 0, np.nan, 0, 0.5])
