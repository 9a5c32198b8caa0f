"""Conditions met in the wild, one a folder of small files: the right value, the right order.

The files lie beside this checkout. The same conditions are covered without them by the tests of
`dicom` and `slices`.
"""

import os

import numpy as np
import pytest
from conftest import shared

from kit.dicom import DicomError, read_hounsfield
from kit.slices.index import index_slices


def read_case(folder):
    """Each usable slice, in order, with (centre, corner) in HU; the reasons; the slice table."""
    slices, skipped = index_slices(folder, 1)
    found = {}
    for path in slices["path"]:
        hounsfield = read_hounsfield(path)
        assert hounsfield.shape == (32, 32)
        found[path[len(str(folder)) + 1 :]] = float(hounsfield[16, 16]), float(hounsfield[0, 0])
    names = skipped["path"].map(os.path.basename)
    return found, dict(zip(names, skipped["reason"], strict=True)), slices


def numbered(count: int, centre=lambda number: 20 + number, name="{}.dcm") -> dict:
    """Files 1 to `count` in this order, the centre of each by its number, in air."""
    return {name.format(n): (centre(n), -1000) for n in range(1, count + 1)}


WATER = (40, -1000)
ONE = {"a.dcm": WATER}
PLANE = "plane is not axial: its normal is 90° off the body's axis"

# The usable files in their order, each with the HU of its centre and its corner.
RIGHT = {
    "all_missing_position_two_acq": {
        f"{acquisition}_{n}.dcm": (20 * acquisition + n, -1000)
        for n in range(1, 7)
        for acquisition in (1, 2)
    },
    "big_endian_ob": ONE,
    "charset_unknown": numbered(4, lambda _: 40),
    "decimal_comma": {},
    "delimiter_in_fragment": ONE,
    "dicomdir": {f"PT000000/ST000000/SE000000/IM00000{n}": WATER for n in range(3)},
    "dup_position_jitter": {
        f"{n}{copy}.dcm": (20 + n, -1000) for n in range(1, 6) for copy in ("", "b")
    },
    "enhanced_ct": {},
    "extra_high_hu": ONE,
    "feet_first_decubitus": numbered(8),
    "float_pixels": {},
    "frames_zero": {},
    "gantry_z_constant": numbered(8),
    "icon_encapsulated": ONE,
    "instance_number_not_spatial": {
        f"{n}.dcm": (21 + place, -1000)
        for place, n in enumerate((1, 7, 2, 8, 3, 9, 4, 10, 5, 11, 6, 12))
    },
    "intercept_minus50": {"a.dcm": (40, -50)},
    "iop_zero": {},
    "jpeg_named_native": ONE,
    "legit_12bit_intercept0": {"a.dcm": (3300, 0)},
    "long_ds": numbered(2, lambda _: 40),
    "meta_implicit": ONE,
    "meta_missing": ONE,
    "modality_lowercase": {},
    "modality_lut": {},
    "mono1": ONE,
    "mpr_mixed": numbered(5, name="ax/{}.dcm"),
    "neg_slope": {},
    "offset_without_intercept": {"1.dcm": (1064, 24), "2.dcm": (1064, 24)},
    "orientation_alternates": numbered(12),
    "overlay_in_high_bits": ONE,
    "padded_ids": numbered(4),
    "padding_4095": ONE,
    "padding_high": ONE,
    "per_slice_rescale": numbered(3, lambda _: 40),
    "perfusion_map": {},
    "position_text_nul": {"nul.dcm": WATER},
    "rescale_type_hounsfield": {"a.dcm": WATER, "b.dcm": WATER},
    "rsna_no_instance": numbered(5, name="ID_{}.dcm"),
    "same_sop_two_series": {
        f"S{series}/{n}.dcm": (40 * series - 20, -1000) for series in (1, 2) for n in range(1, 6)
    },
    "same_uids_two_patients": {
        f"{patient}/{n}.dcm": (centre, -1000)
        for patient, centre in (("A", 20), ("B", 60))
        for n in range(1, 6)
    },
    "scout_by_other_names": numbered(7),
    "secondary_axial": {},
    "series_uid_per_slice": numbered(12),
    "slice_bits": {"1_11.dcm": (1000, -1000), "2_12.dcm": (2000, -1000), "3_8.dcm": (-800, -1000)},
    "slice_location_only": {},
    "slope2_intercept0": {"a.dcm": (40, 0)},
    "syntax_with_blank": {"a.dcm": WATER, "b.dcm": WATER},
    "trailing_backslash": {},
    "true_wrong_intercept": numbered(2, lambda _: 40),
    "two_acquisitions": {
        f"{acquisition}{n}.dcm": (20 + 40 * acquisition, -1000)
        for n in range(10)
        for acquisition in (0, 1)
    },
    "two_passes": {
        f"{n:02}.dcm": (20 + n, -1000) for n in (*range(1, 10), 12, 10, 11, *range(13, 23))
    },
    "un_vrs": numbered(2, lambda _: 40),
    "zip_in_zip": {},
    "zips_in_folder": {},
}
ORIENTATION = "ImageOrientationPatient is not two unit vectors at right angles: it is "
UNPLACED = "ImagePositionPatient is missing: InstanceNumber does not tell its place either"
NOT_DICOM = "not a DICOM file: "

REASONS = {
    "decimal_comma": {
        "int.dcm": "values are not Hounsfield units: RescaleIntercept is -1024,0",
        "ipp.dcm": r"ImagePositionPatient is not 3 numbers: it is -80,5\-80\5.5",
    },
    "dicomdir": {"DICOMDIR": "a DICOMDIR, which lists files and holds no image"},
    "enhanced_ct": {"a.dcm": "not a CT image: SOPClassUID is Enhanced CT Image Storage"},
    "float_pixels": {"a.dcm": "pixels are floating-point numbers: they are FloatPixelData"},
    "frames_zero": {"a.dcm": "not one slice in one file: NumberOfFrames is 0"},
    "icon_encapsulated": {"b.dcm": "file holds no pixel data"},
    "iop_zero": dict.fromkeys(numbered(5), ORIENTATION + r"0.0\0.0\0.0\0.0\0.0\0.0"),
    "modality_lowercase": {
        "a.dcm": "not a CT image: Modality is ct (CT Image Storage)",
        "b.dcm": "not a grayscale image: PhotometricInterpretation is monochrome2",
    },
    "modality_lut": {
        "a.dcm": "values are not known to be Hounsfield units: RescaleSlope is missing; "
        "there is a ModalityLUTSequence"
    },
    "mpr_mixed": dict.fromkeys(numbered(5), PLANE),
    "neg_slope": {"a.dcm": "values are not Hounsfield units: RescaleSlope is -1.0"},
    "perfusion_map": dict.fromkeys(
        numbered(2), "a parametric map, not Hounsfield units: ImageType says CBF"
    ),
    "position_text_nul": {
        "blank.dcm": r"ImagePositionPatient is not 3 numbers: it is -80\   \5",
        "nan.dcm": r"ImagePositionPatient is not 3 numbers: it is -80\-80\…",
    },
    "scout_by_other_names": {"scout.dcm": "plane is more than 10° off that of its series"},
    "secondary_axial": dict.fromkeys(
        numbered(2), "not a CT image: SOPClassUID is Secondary Capture Image Storage"
    ),
    "slice_location_only": dict.fromkeys(numbered(12), UNPLACED),
    "trailing_backslash": {
        "a.dcm": r"ImageOrientationPatient is not 6 numbers: it is 1\0\0\0\1\0" + "\\"
    },
    "zip_in_zip": {"outer.zip": NOT_DICOM + "a zip archive; unpack it first"},
    "zips_in_folder": {
        "A.zip": NOT_DICOM + "a zip archive; unpack it first",
        "B.zip": NOT_DICOM + "a zip archive; unpack it first",
        "one.dcm.gz": NOT_DICOM + "packed by gzip; unpack it first",
        "t.tar": NOT_DICOM + "a tar archive; unpack it first",
    },
}

SAME_PLACE = "another slice of its series is at the same place"
NO_AIR = "no value can be below -200 HU, so the rescale intercept may be wrong"

# What is told of slices that are used, and of how many.
NOTES = {
    "all_missing_position_two_acq": {
        "its position is missing and its InstanceNumber gave its place": 12,
        SAME_PLACE: 12,
    },
    "dup_position_jitter": {SAME_PLACE: 10},
    "intercept_minus50": {NO_AIR: 1},
    "legit_12bit_intercept0": {NO_AIR: 1},
    "offset_without_intercept": {NO_AIR: 1},
    "series_uid_per_slice": {"one of several series of a single slice in its study": 12},
    "slope2_intercept0": {NO_AIR: 1},
    "two_acquisitions": {SAME_PLACE: 20},
    "two_passes": {SAME_PLACE: 4},
}


@pytest.mark.parametrize("name", RIGHT)
def test_each_condition_gives_the_right_values_in_the_right_order_or_the_reason(name):
    found, reasons, slices = read_case(shared(f"cases/{name}"))
    assert found == RIGHT[name]
    if name not in ("series_uid_per_slice", "charset_unknown"):  # each slice is a series, by UID
        assert list(found) == list(RIGHT[name])
        assert slices["series"].nunique() == min(len(found), 1 + name.startswith("same_"))
    assert reasons == REASONS.get(name, {})
    notes = slices["note"].dropna().str.split("; ").explode().value_counts().to_dict()
    assert notes == NOTES.get(name, {})
    assert slices["repaired"].tolist() == [name == "true_wrong_intercept"] * len(found)


def test_a_zip_with_backslashes_in_its_names_is_read():
    found, reasons, _ = read_case(shared("cases/backslash_zip/w.zip"))
    assert list(found.values()) == [(20 + n, -1000) for n in range(1, len(found) + 1)]
    assert not reasons


def test_every_folder_of_the_cases_is_tested():
    folders = {path.name for path in shared("cases").iterdir() if path.is_dir()}
    assert folders == {*RIGHT, "backslash_zip"}


def test_what_the_index_refuses_reading_refuses_with_the_same_reason():
    """Apart from the plane and the position, which concern the series."""
    for path in sorted(shared("cases").rglob("*.dcm")):
        slices, skipped = index_slices(path, 1)
        reasons = [*skipped["reason"]]
        if reasons and not reasons[0].startswith(("plane", "Image")):
            with pytest.raises(DicomError) as caught:
                read_hounsfield(path)
            assert caught.value.reason == reasons[0]
        elif not reasons:
            assert np.isfinite(read_hounsfield(path)).all()
            assert len(slices) == 1
