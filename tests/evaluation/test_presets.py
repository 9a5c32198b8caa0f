import numpy as np
import pandas as pd
import pytest
from evaluation_files import SHORT, write_reads
from statsmodels.stats.inter_rater import fleiss_kappa

from kit import InputError
from kit.competition import LABELS, to_submission
from kit.evaluation.cases import match_cases
from kit.evaluation.inputs import read_predictions
from kit.evaluation.presets import PRESETS, measure_agreement

KINDS = ["Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural"]


def match(predictions, labels, preset, unit):
    form = PRESETS[preset]
    return match_cases(form.adapt(read_predictions(predictions)), form.read(labels, None), unit)


def test_the_majority_of_cq500s_readers_is_the_reference(tmp_path):
    majority = write_reads(tmp_path / "reads.csv", 40)
    labels = PRESETS["cq500"].read(tmp_path / "reads.csv", None)
    np.testing.assert_array_equal(labels.table[list(LABELS)], majority)
    assert labels.unit == "patient"
    assert "Category" in labels.table
    reads = pd.read_csv(tmp_path / "reads.csv")
    for label, name in SHORT.items():
        votes = reads[[f"R{reader}:{name}" for reader in (1, 2, 3)]].to_numpy()
        counts = np.stack([3 - votes.sum(axis=1), votes.sum(axis=1)], axis=1)
        assert labels.agreement[label] == pytest.approx(fleiss_kappa(counts), abs=1e-12)


def test_readers_who_always_agree_have_a_kappa_of_one_or_none():
    assert measure_agreement(np.array([[1, 1, 1], [0, 0, 0]])) == 1
    assert np.isnan(measure_agreement(np.ones((4, 3))))


@pytest.mark.parametrize("column", ["PatientID", "path"])
def test_cq500s_patients_are_found_by_header_or_folder(tmp_path, column):
    majority = write_reads(tmp_path / "reads.csv", 5)
    form = "CQ500-CT-{}" if column == "PatientID" else "/qct01/CQ500CT{0} CQ500CT{0}/CT 5mm/1.dcm"
    rows = [
        {"PatientID": "x", column: form.format(patient), "SOPInstanceUID": f"{patient}.{number}",
         "SeriesInstanceUID": f"s{patient}", "any": 0.1 * number}
        for patient in range(4) for number in range(3)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "p.csv", index=False)
    cases = match(tmp_path / "p.csv", tmp_path / "reads.csv", "cq500", "patient")
    assert cases.ids.tolist() == [f"CQ500-CT-{number}" for number in range(4)]
    np.testing.assert_array_equal(cases.labels, majority[:4])
    assert cases.models["model"][:, 5].tolist() == [0.2] * 4
    assert cases.unmatched["id"].tolist() == ["CQ500-CT-4"]
    assert cases.details["series"].tolist() == ["s0", "s1", "s2", "s3"]


def test_a_reads_file_without_a_column_or_with_a_blank_is_refused(tmp_path):
    write_reads(tmp_path / "reads.csv", 3)
    reads = pd.read_csv(tmp_path / "reads.csv")
    reads.drop(columns="R2:SDH").to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(InputError, match=r"short\.csv: no column 'R2:SDH'"):
        PRESETS["cq500"].read(tmp_path / "short.csv", None)
    reads.astype({"R1:ICH": object}).assign(**{"R1:ICH": ["", 1, 0]}).to_csv(
        tmp_path / "blank.csv", index=False
    )
    with pytest.raises(InputError, match="CQ500-CT-0: a reading of ICH is not 0 or 1"):
        PRESETS["cq500"].read(tmp_path / "blank.csv", None)


def write_ct_ich(folder, rows):
    columns = ["PatientNumber", "SliceNumber", *KINDS, "No_Hemorrhage", "Fracture_Yes_No"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "l.csv", index=False)
    return folder / "l.csv"


def test_ct_ich_is_matched_by_numbers_of_patient_and_slice(tmp_path):
    rows = [
        [49, 1, 0, 0, 0, 0, 0, 1, 0],
        [49, 2, 0, 1, 0, 0, 0, 0, 0],
        [50, 1, 0, 0, 0, 0, 1, 0, 0],
    ]
    labels = write_ct_ich(tmp_path, rows)
    table = pd.DataFrame(
        {
            "PatientID": ["049", "049", "050"],
            "SOPInstanceUID": ["a", "b", "c"],
            "seq": [1, 2, 1],
            "any": [0.1, 0.2, 0.3],
        }
    )
    table.to_csv(tmp_path / "p.csv", index=False)
    cases = match(tmp_path / "p.csv", labels, "ct-ich", "slice")
    assert cases.ids.tolist() == ["49:1", "49:2", "50:1"]
    assert cases.labels[:, 5].tolist() == [0, 1, 1]
    assert cases.labels[:, LABELS.index("intraparenchymal")].tolist() == [0, 1, 0]
    by_patient = match(tmp_path / "p.csv", labels, "ct-ich", "patient")
    assert by_patient.ids.tolist() == ["49", "50"]
    assert by_patient.models["model"][:, 5].tolist() == [0.2, 0.3]


def test_ct_ich_that_contradicts_itself_is_refused(tmp_path):
    labels = write_ct_ich(tmp_path, [[49, 1, 0, 1, 0, 0, 0, 1, 0]])
    with pytest.raises(InputError, match="row 1: No_Hemorrhage contradicts the five kinds"):
        PRESETS["ct-ich"].read(labels, None)


def test_two_slices_of_one_ct_ich_name_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text(
        "PatientID,SOPInstanceUID,seq,any\n049,a,1,0.1\n49,b,1,0.2\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"CT-ICH's 49:1 \(patient:slice\)"):
        PRESETS["ct-ich"].adapt(read_predictions(tmp_path / "p.csv"))


def test_the_organizers_labels_are_by_slice(tmp_path):
    index = pd.Index(["ID_1", "ID_2"], name="SOPInstanceUID")
    wide = pd.DataFrame([[0, 0, 1, 0, 0, 1], [0] * 6], index, list(LABELS))
    to_submission(wide).to_csv(tmp_path / "l.csv", index=False)
    labels = PRESETS["rsna"].read(tmp_path / "l.csv", None)
    assert labels.unit == "slice"
    np.testing.assert_array_equal(labels.table[list(LABELS)], wide)
    with pytest.raises(InputError, match=r"l\.csv: the organizers' labels have one form"):
        PRESETS["rsna"].read(tmp_path / "l.csv", {"any": "Label"})
