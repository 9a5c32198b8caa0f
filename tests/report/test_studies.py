"""The studies of a page of scans: the series of each, the slices without a score, the rest."""

import numpy as np
import pandas as pd
import pytest
from dicom_files import write_cut_short, write_slice

from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.report.studies import list_slices, list_studies
from kit.runs.prediction import Predictions
from kit.slices import index_slices
from kit.slices.series import describe_series

AIR = np.full((8, 8), -1000, np.int16)


def predict(folder, failed=()):
    """Predictions of .1, .2, … from feet to head; those of files in `failed` have none."""
    slices, skipped = index_slices(folder)
    gone = slices["path"].str.endswith(tuple(failed) or ("none",))
    described = describe_series(slices, skipped)
    skipped = pd.concat([skipped, slices[gone].assign(reason="broken: detail", code="broken")])
    table = slices[~gone].assign(averaged=1)
    for name in (*LABELS, *name_columns("classifier")):
        table[name] = table["seq"] / 10
    return Predictions(table, None, described, skipped, None, 1.0)


def write_series(folder, uid, count=3, **tags):
    for number in range(count):
        own = {
            "SeriesInstanceUID": f"1.2.1.{uid}",
            "SOPInstanceUID": f"1.2.1.{uid}.{number}",
            "SeriesDescription": f"series {uid}",
            "StudyDescription": "a study" if number else "",
            "ImagePositionPatient": [0, 0, 5 * number],
            "InstanceNumber": 99 - number,
            **tags,
        }
        write_slice(folder / uid / f"{number}.dcm", AIR, **own)


def test_slices_that_were_left_out_stand_at_their_places_with_their_code(tmp_path):
    write_series(tmp_path, "1", 5)
    write_cut_short(
        tmp_path / "1" / "2.dcm",
        stored=AIR,
        SeriesInstanceUID="1.2.1.1",
        SOPInstanceUID="1.2.1.1.2",
        ImagePositionPatient=[0, 0, 10],
    )
    found = list_slices(predict(tmp_path, failed=["1/3.dcm"]))
    assert found["SOPInstanceUID"].tolist() == [f"1.2.1.1.{n}" for n in range(5)]
    assert found["code"].isna().tolist() == [True, True, False, False, True]
    assert found["code"][2:4].tolist() == ["pixel data is cut short", "broken"]
    # seq counts the four slices that the index took: 1, 2, 3 (failed), 4.
    np.testing.assert_allclose(found["bag_any"], [0.1, 0.2, np.nan, np.nan, 0.4])
    assert not any(name.startswith("classifier_") for name in found)


def test_a_copy_of_a_scored_slice_is_not_one_more(tmp_path):
    write_series(tmp_path, "1", 3)
    (tmp_path / "1" / "copy.dcm").write_bytes((tmp_path / "1" / "1.dcm").read_bytes())
    assert len(list_slices(predict(tmp_path))) == 3


def test_a_study_has_its_chosen_series_and_why_the_others_are_left_out(tmp_path):
    write_series(tmp_path, "1", 12)
    write_series(tmp_path, "2", 12, ConvolutionKernel="H60s")
    write_series(tmp_path, "3", 3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    found = predict(tmp_path, failed=["1/11.dcm", *(f"2/{n}.dcm" for n in range(12))])
    slices = list_slices(found)
    (study,) = list_studies(found, slices)
    assert study["chosen"] == "P1/1.2.1/1.2.1.1"
    assert study["title"] == "series 1"
    assert study["patient"] == "P1"
    assert study["probabilities"] == [pytest.approx(1.1)] * 6  # the highest slice that was scored
    assert study["rest"] == "2 left out"
    assert study["warnings"][-1] == "1 slice could not be scored"
    assert list(study["scored"]) == [study["chosen"]]
    card = study["scored"][study["chosen"]]
    assert card["facts"] == "axial · every 5 mm · 12 slices"
    reasons = {left["title"]: left["reason"] for left in study["left_out"]}
    assert reasons["series 2"] == "none of its slices could be read"
    assert reasons["series 3"].startswith("plane is not axial")


def test_a_series_that_was_not_asked_for_is_said_to_be_that(tmp_path):
    """As with `--by study`, where one series of a study is predicted."""
    write_series(tmp_path, "1", 12)
    write_series(tmp_path, "2", 12, ConvolutionKernel="H60s")
    found = predict(tmp_path)
    alone = found.table[found.table["SeriesInstanceUID"] == "1.2.1.1"]
    found = Predictions(alone, None, found.described, found.skipped, None, 1.0)
    (study,) = list_studies(found, list_slices(found))
    assert [left["reason"] for left in study["left_out"]] == ["another series was chosen"]


def test_a_study_whose_chosen_series_gave_nothing_has_no_numbers(tmp_path):
    write_series(tmp_path, "1", 3)
    write_series(tmp_path, "2", 2, StudyInstanceUID="1.2.9")
    found = predict(tmp_path, failed=[f"1/{n}.dcm" for n in range(3)])
    first, second = list_studies(found, list_slices(found))
    assert first["uid"] == "1.2.1"
    assert (first["chosen"], first["probabilities"], first["title"]) == (None, None, "")
    assert [left["reason"] for left in first["left_out"]] == ["none of its slices could be read"]
    assert second["probabilities"] == [0.2] * 6


def test_a_models_own_answer_for_a_series_is_the_studys(tmp_path):
    write_series(tmp_path, "1", 3)
    found = predict(tmp_path)
    names = found.table["series"].unique()
    pooled = pd.DataFrame(0.125, index=pd.Index(names, name="series"), columns=list(LABELS))
    found = Predictions(found.table, pooled, found.described, found.skipped, None, 1.0)
    (study,) = list_studies(found, list_slices(found))
    assert study["probabilities"] == [0.125] * 6


def test_a_thin_series_says_that_its_slices_were_averaged(tmp_path):
    write_series(tmp_path, "1", 3)
    found = predict(tmp_path)
    table = found.table.assign(averaged=[4, 3, 1])
    found = Predictions(table, None, found.described, found.skipped, None, 1.0)
    (study,) = list_studies(found, list_slices(found))
    assert study["warnings"][-1] == "thin: up to 4 slices averaged to one"
