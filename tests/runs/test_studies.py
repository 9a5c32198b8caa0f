"""A row a study: the chosen series, its probabilities and its key slices."""

import numpy as np
import pandas as pd

from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.evaluation.cases import match_cases
from kit.evaluation.inputs import read_labels_table, read_predictions
from kit.runs.studies import summarize_studies
from kit.runs.tables import write_guarded


def describe(name, **how):
    row = {
        "PatientID": "p", "StudyInstanceUID": name[0], "SeriesInstanceUID": name,
        "SeriesDescription": f"about {name}", "plane": "axial", "spacing": 5.0, "slices": 12,
        "warnings": "", "series": f"p/{name[0]}/{name}",
    }  # fmt: skip
    return {**row, **how}


def predict(name, values):
    """Slices of a series; `values` are the probabilities of the first label."""
    table = pd.DataFrame(0.1, range(len(values)), [*LABELS, *name_columns("classifier")])
    table[LABELS[0]] = values
    table["classifier_any"] = np.linspace(0.2, 0.3, len(values))
    uids = [f"{name}.{number}" for number in range(len(values))]
    numbers = np.arange(len(values), 0, -1)  # head first, as some scanners count
    own = {
        "SOPInstanceUID": uids,
        "InstanceNumber": numbers,
        "position": 5.0 * np.arange(len(uids)),
    }
    return table.assign(series=f"p/{name[0]}/{name}", **own)


DESCRIBED = pd.DataFrame(
    [
        describe("A1", warnings="bone kernel"),
        describe("A2"),
        describe("A3", plane="coronal", slices=0, warnings="plane is not axial"),
        describe("B1", warnings="contrast"),
    ]
)
TABLE = pd.concat(
    [predict("A1", [0.9, 0.9]), predict("A2", [0.2, 0.6, 0.4]), predict("B1", [0.3, 0.3])],
    ignore_index=True,
)


def test_a_study_has_the_probabilities_of_its_series_and_the_slice_to_look_at():
    first, second = summarize_studies(TABLE, DESCRIBED).to_dict("records")
    assert (first["StudyInstanceUID"], first["SeriesInstanceUID"]) == ("A", "A2")
    assert (first["series_count"], first["slices"], first["warnings"]) == (3, 3, "")
    assert first["reason"].endswith("spacing 5.0 mm; best of 3 series")
    assert (first["epidural"], first["any"]) == (0.6, 0.1)
    assert first["epidural_SOPInstanceUID"] == "A2.1"
    assert (first["epidural_InstanceNumber"], first["epidural_position"]) == (2, 5.0)
    assert first["classifier_any_maximum"] == 0.3
    assert (second["SeriesInstanceUID"], second["warnings"]) == ("B1", "contrast")
    assert second["reason"].startswith("axial, with contrast")
    assert second["epidural_SOPInstanceUID"] == "B1.0"  # the lowest of equal ones


def test_a_model_that_pools_series_gives_a_study_its_own_probability():
    names = ["p/A/A1", "p/A/A2", "p/B/B1"]
    pooled = pd.DataFrame([[0.8] * 6, [0.7] * 6, [0.05] * 6], names, list(LABELS))
    found = summarize_studies(TABLE, DESCRIBED, pooled)
    assert found["epidural"].tolist() == [0.7, 0.05]
    assert found["epidural_SOPInstanceUID"].tolist() == ["A2.1", "B1.0"]


def test_a_study_whose_slices_gave_no_image_keeps_its_row():
    found = summarize_studies(TABLE[TABLE["series"] != "p/B/B1"], DESCRIBED)
    assert found["slices"].tolist() == [3, 0]
    assert found.loc[1, [*LABELS, "any_SOPInstanceUID", "any_position"]].isna().all()


def test_the_table_of_studies_is_evaluated_with_its_series_and_how_many_there_were(tmp_path):
    described = pd.concat([DESCRIBED, pd.DataFrame([describe("C1")])], ignore_index=True)
    table = pd.concat([TABLE, predict("C1", [0.7, 0.2])], ignore_index=True)
    write_guarded(tmp_path / "p.csv", summarize_studies(table, described))
    labels = pd.DataFrame({"StudyInstanceUID": ["A", "B", "C"], "epidural": [1, 0, 1]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    predictions = read_predictions(tmp_path / "p.csv")
    cases = match_cases(predictions, read_labels_table(tmp_path / "labels.csv"), "study")
    assert cases.ids.tolist() == ["A", "B", "C"]
    assert cases.models["model"][:, 0].tolist() == [0.6, 0.3, 0.7]
    assert cases.details["series"].tolist() == ["A2", "B1", "C1"]
    assert cases.details["series_count"].tolist() == [3, 1, 1]
    assert cases.details["reason"].str.startswith("axial, ").all()
    assert "classifier alone" in cases.models
