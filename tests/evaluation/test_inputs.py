import numpy as np
import pandas as pd
import pytest
from evaluation_files import write_studies

from kit import InputError
from kit.competition import LABELS, to_submission
from kit.evaluation.inputs import (
    WHOLE,
    find_unit,
    make_labels,
    read_columns,
    read_labels_table,
    read_predictions,
    select_models,
)
from kit.submission import write_submission


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_the_unit_is_the_finest_id_and_both_models_are_read(tmp_path):
    predictions, labels = (read(path) for read, path in zip(
        (read_predictions, read_labels_table), write_studies(tmp_path, 5), strict=True
    ))  # fmt: skip
    assert (predictions.unit, labels.unit) == ("study", "study")
    assert predictions.models == [WHOLE, "classifier alone"]
    assert not predictions.calibrated
    written = pd.read_csv(tmp_path / "predictions.csv")
    models = select_models(predictions)
    np.testing.assert_array_equal(models[WHOLE], written[list(LABELS)])
    np.testing.assert_array_equal(models["classifier alone"][:, 0], written["classifier_epidural"])


def test_a_table_by_series_gives_its_maxima(tmp_path):
    path = write(
        tmp_path / "p.csv", "SeriesInstanceUID,any_maximum,any_slices\n1.2,0.25,3\n1.3,0.5,1\n"
    )
    predictions = read_predictions(path)
    assert predictions.unit == "series"
    assert select_models(predictions)[WHOLE][:, 5].tolist() == [0.25, 0.5]
    assert np.isnan(select_models(predictions)[WHOLE][:, 0]).all()


def test_a_submission_is_read_by_slice(tmp_path):
    index = pd.Index(["ID_1", "ID_2"], name="SOPInstanceUID")
    wide = pd.DataFrame([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 2, index, list(LABELS))
    write_submission(wide, tmp_path / "s.csv")
    assert len(to_submission(wide)) == 12
    predictions = read_predictions(tmp_path / "s.csv")
    assert predictions.unit == "slice"
    np.testing.assert_allclose(select_models(predictions)[WHOLE], wide)


def test_a_runs_table_gives_the_bag_not_the_labels_beside_it(small_run):
    predictions, labels = read_predictions(small_run.oof), read_labels_table(small_run.oof)
    table = pd.read_parquet(small_run.oof)
    assert predictions.models == [WHOLE, "classifier alone", "rolling mean", "LSTM, last epoch"]
    np.testing.assert_array_equal(select_models(predictions)[WHOLE][:, 5], table["bag_any"])
    np.testing.assert_array_equal(labels.table["any"], table["any"])


def test_another_tool_s_columns_are_mapped(tmp_path):
    path = write(tmp_path / "p.csv", "scan,P(ICH)\n007,0.5\n010,0.25\n")
    predictions = read_predictions(path, {"any": "P(ICH)", "StudyInstanceUID": "scan"})
    assert predictions.table["StudyInstanceUID"].tolist() == ["007", "010"]
    assert select_models(predictions)[WHOLE][:, 5].tolist() == [0.5, 0.25]
    with pytest.raises(InputError, match=r"p\.csv: no column 'P'; there are scan, P\(ICH\)"):
        read_columns(path, {"any": "P"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("StudyInstanceUID,any\na,1.5\n", r"row 1: model_any is no probability from 0 to 1"),
        ("StudyInstanceUID,any\na,0.5\nb,\n", r"row 2: model_any is no probability"),
        ("StudyInstanceUID,any\na,high\n", r"row 1: any is not a number"),
        ("StudyInstanceUID,any\na,0.5\na,0.5\n", r"StudyInstanceUID a occurs twice"),
        ("StudyInstanceUID,any\na,0.5\n,0.5\n", r"row 2 has no StudyInstanceUID"),
        ("name,any\na,0.5\n", r"no column of ids"),
        ("StudyInstanceUID,bleeding\na,0.5\n", r"no column of a label"),
        ("StudyInstanceUID,any\n", r"there is no row in it"),
        ("", r"not a table that can be read"),
        ("StudyInstanceUID,any\na,0.5,7\n", r"not a table.*more columns than its header"),
        ("StudyInstanceUID,classifier_any\na,0.5\n", r"no column of a label"),
    ],
)
def test_wrong_predictions_are_refused_naming_the_row(tmp_path, text, reason):
    with pytest.raises(InputError, match=rf"p\.csv: {reason}"):
        read_predictions(write(tmp_path / "p.csv", text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("StudyInstanceUID,any\na,0.5\n", r"row 1: any is neither 0, 1 nor blank"),
        ("StudyInstanceUID,any\na,-1\n", r"row 1: any is neither 0, 1 nor blank"),
        ("StudyInstanceUID,any\na,yes\n", r"row 1: any is not a number"),
        ("StudyInstanceUID,any,Weight\na,1,2\n", r"has the column 'weight', but rows cannot"),
    ],
)
def test_wrong_labels_and_weights_are_refused(tmp_path, text, reason):
    with pytest.raises(InputError, match=rf"l\.csv: {reason}"):
        read_labels_table(write(tmp_path / "l.csv", text))


def test_blanks_are_missing_labels_and_any_is_derived_where_it_is_known(tmp_path):
    kinds = ",".join(LABELS[:5])
    rows = "a,0,0,0,0,0\nb,1,,0,0,0\nc,0,,0,0,0\n"
    labels = read_labels_table(write(tmp_path / "l.csv", f"StudyInstanceUID,{kinds}\n{rows}"))
    np.testing.assert_array_equal(labels.table["any"], [0, 1, np.nan])
    assert "`any` was derived" in labels.notes[0]


def test_labels_of_a_frame_keep_other_columns(tmp_path):
    table = pd.DataFrame({"StudyInstanceUID": ["a", "b"], "any": ["1", "0"], "site": ["x", "y"]})
    labels = make_labels(tmp_path / "l.csv", table, ("read by one reader",))
    assert labels.table["site"].tolist() == ["x", "y"]
    assert labels.notes == ["read by one reader"]
    assert find_unit(tmp_path / "l.csv", table) == "study"


def test_columns_may_swap_their_names_but_none_has_two(tmp_path):
    path = write(tmp_path / "p.csv", "StudyInstanceUID,any,subdural\na,0.5,0.25\n")
    swapped = read_predictions(path, {"any": "subdural", "subdural": "any"})
    assert select_models(swapped)[WHOLE][0, 4:].tolist() == [0.5, 0.25]
    with pytest.raises(InputError, match=r"p\.csv: the column 'any' is given for any and epidural"):
        read_predictions(path, {"any": "any", "epidural": "any"})


def test_a_label_cannot_be_mapped_where_a_runs_own_predictions_would_hide_it(small_run):
    with pytest.raises(InputError, match=r"own predictions \(bag_any …\), which count: no column"):
        read_predictions(small_run.oof, {"any": "classifier_any"})
    assert read_predictions(small_run.oof, {"StudyInstanceUID": "StudyInstanceUID"})


def test_a_column_that_is_called_as_a_models_is_not_mistaken_for_it(tmp_path):
    path = write(tmp_path / "p.csv", "StudyInstanceUID,any,model_any,own PatientID\na,0.5,0.1,x\n")
    predictions = read_predictions(path)
    assert select_models(predictions)[WHOLE][:, 5].tolist() == [0.5]
    assert list(predictions.table) == ["StudyInstanceUID", "model_any"]


def test_a_gzipped_table_is_read_and_a_missing_one_named(tmp_path):
    pd.DataFrame({"StudyInstanceUID": ["a"], "any": [0.5]}).to_csv(
        tmp_path / "p.csv.gz", index=False
    )
    assert read_predictions(tmp_path / "p.csv.gz").table["StudyInstanceUID"].tolist() == ["a"]
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        read_predictions(tmp_path / "gone.csv")


def test_a_model_that_is_unknown_throughout_is_left_out(tmp_path):
    path = write(tmp_path / "p.csv", "StudyInstanceUID,any,classifier_any\na,0.5,\nb,0.5,\n")
    assert read_predictions(path).models == [WHOLE]
    path.write_text("StudyInstanceUID,any,classifier_any\na,0.5,\nb,0.5,0.1\n", encoding="utf-8")
    with pytest.raises(InputError, match="row 1: classifier alone_any is no probability"):
        read_predictions(path)


def test_what_says_that_it_is_calibrated_is_known_to_be(tmp_path):
    path = write(tmp_path / "p.csv", "StudyInstanceUID,any,calibrated\na,0.5,True\n")
    assert read_predictions(path).calibrated
