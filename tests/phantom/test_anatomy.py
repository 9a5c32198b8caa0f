"""The synthetic head: its tissues, as the written files show them."""

import numpy as np
import pydicom
import pytest

from kit.phantom.plan import plan_patients
from kit.phantom.write import write_phantom

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")


def test_tissues_read_back_have_the_hounsfield_units_of_a_head(tmp_path):
    write_phantom(tmp_path / "p", patients=3, size=128, seed=4, workers=1)
    healthy = {p.patient_id for p in plan_patients(3, 4) if p.bleeding is None}
    csf, brain = [], []
    for path in sorted((tmp_path / "p").glob("*/*.dcm")):
        file = pydicom.dcmread(path)
        if file.PatientID not in healthy or file.RescaleIntercept > -100:
            continue
        if len(file.PixelData) < 2 * 128**2:
            continue
        hounsfield = _hounsfield(file)
        middle = hounsfield[44:84, 44:84]
        assert np.median(hounsfield[60:68, 1:5]) < -990  # air beside the head
        if 25 < np.median(middle) < 45:
            assert 900 < np.percentile(hounsfield, 99) < 1400  # skull, its diploë averaged in
            brain.append(np.median(middle))
            csf.append(_box_means(middle).min())
    assert len(brain) > 10
    assert 28 < np.median(brain) < 40
    assert 0 < min(csf) < 14


def _hounsfield(file: pydicom.Dataset) -> np.ndarray:
    return file.pixel_array.astype(int) * int(file.RescaleSlope) + int(file.RescaleIntercept)


def _box_means(image: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(image, (3, 3)).mean(axis=(2, 3))
