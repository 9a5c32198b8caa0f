"""What accompanies predictions: the summary of each series and the manifest."""

import hashlib
import json

import numpy as np
import pandas as pd

from kit.competition import LABELS
from kit.runs.directory import Run
from kit.runs.scans import count_reasons, measure_thickness, summarize_series, write_manifest


def scan_table(positions, any_probability, series="p/st/s"):
    names = dict(
        zip(("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), series.split("/"), strict=True)
    )
    values = {label: 0.1 for label in LABELS}
    columns = {"position": positions, **values, "any": any_probability, "series": series}
    return pd.DataFrame(columns).assign(**names, path="x.dcm", ImagePositionPatient="0\\0\\0")


def test_a_series_summary_is_the_one_computed_by_hand():
    # Steps 5, 5, 70 and 5: slices stand for 5, 5, 5, 5 and 5 mm, for a gap counts one median step.
    table = scan_table([0, 5, 10, 80, 85.0], [0.2, 0.6, 0.7, 0.5, 0.1])
    row = summarize_series(table).iloc[0]
    assert (row["slices"], row["any_maximum"], row["any_slices"]) == (5, 0.7, 3)
    assert row["any_extent_mm"] == 15
    assert row["epidural_extent_mm"] == 0
    assert summarize_series(table, threshold=0.65).iloc[0]["any_extent_mm"] == 5


def test_two_scans_at_the_same_positions_do_not_double_the_extent():
    np.testing.assert_allclose(measure_thickness(np.array([0, 0, 4, 4, 8, 8.0])).sum(), 12)


def test_no_extent_is_given_without_positions():
    assert np.isnan(summarize_series(scan_table([3.0], [0.9])).iloc[0]["any_extent_mm"])
    numbered = scan_table([1, 2, 3.0], [0.9] * 3).assign(ImagePositionPatient=None)
    summary = summarize_series(pd.concat([numbered, scan_table([0, 2.0], [0.9] * 2, "q/st/t")]))
    assert np.isnan(summary["any_extent_mm"][0])
    assert summary["any_extent_mm"][1] == 4


def test_the_manifest_names_weights_and_reasons_and_nobody(tmp_path):
    weights = tmp_path / "fold0" / "epoch1.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    codes = ["a copy of another file", "not a DICOM file", "not a DICOM file", None]
    reasons = [f"{code}: /scans/DOE^JANE/1.dcm" for code in codes]
    skipped = pd.DataFrame({"path": "DOE^JANE", "reason": reasons, "code": codes})
    path = tmp_path / "out.json"
    (tmp_path / "config.json").write_text('{"recipe": {"name": "single"}}')
    write_manifest(
        path, Run(tmp_path), {weights: []}, scan_table([0, 1.0], [0.1, 0.2]), skipped, 1.23
    )
    manifest = json.loads(path.read_text())
    assert "DOE" not in path.read_text()
    assert manifest["skipped"] == {
        "not a DICOM file": 2,
        "a copy of another file": 1,
        "reason listed in skipped.csv": 1,
    }
    assert count_reasons(skipped) == manifest["skipped"]
    assert count_reasons(skipped[["path", "reason"]]) == {"reason listed in skipped.csv": 4}
    digest = hashlib.sha256(b"weights").hexdigest()
    assert manifest["weights_sha256"] == {"fold0/epoch1.safetensors": digest}
    assert (manifest["slices"], manifest["series"], manifest["seconds"]) == (2, 1, 1.2)


def test_a_series_has_the_models_own_probability_or_else_the_highest():
    table = scan_table([0, 5.0], [0.2, 0.6])
    assert summarize_series(table).iloc[0]["any"] == 0.6
    pooled = pd.DataFrame([[0.3] * 5 + [0.4]], pd.Index(["p/st/s"]), list(LABELS))
    row = summarize_series(table, pooled=pooled).iloc[0]
    assert (row["epidural"], row["any"], row["any_maximum"]) == (0.3, 0.4, 0.6)
