"""Hounsfield values as other libraries give them, and by arithmetic for encodings at random."""

import numpy as np
import pydicom
import pytest
from conftest import shared
from dicom_files import write_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.pixels import apply_rescale
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from kit.dicom import DicomError, read_hounsfield

# What the others do not know: the competition's wrong intercept, padding, a missing meta
# information, native pixels under a coded syntax; SimpleITK turns MONOCHROME1 round, and takes the
# icon's pixels for the image's.
ONLY_OURS = {"true_wrong_intercept", "padding_4095", "padding_high"}
NOT_PYDICOM = {"meta_missing", "jpeg_named_native", *ONLY_OURS}
NOT_ITK = {"mono1", "icon_encapsulated", *ONLY_OURS}


def read_usable(folder: str) -> dict:
    """Every file of a folder that gives a slice."""
    found = {}
    for path in sorted(path for path in shared(folder).rglob("*") if path.is_file()):
        try:
            found[path] = read_hounsfield(path)
        except DicomError:
            continue
    return found


@pytest.mark.parametrize(("folder", "least"), [("data", 80), ("cases", 100)])
def test_every_file_has_the_values_that_pydicom_gives(folder, least):
    compared = 0
    for path, hounsfield in read_usable(folder).items():
        if path.parent.name not in NOT_PYDICOM:
            dataset = pydicom.dcmread(path, force=True)
            expected = apply_rescale(dataset.pixel_array, dataset)
            np.testing.assert_array_equal(hounsfield, expected, str(path))
            compared += 1
    assert compared >= least


@pytest.mark.parametrize(("folder", "least"), [("data", 80), ("cases", 100)])
def test_every_file_has_the_values_that_simpleitk_gives(folder, least):
    itk = pytest.importorskip("SimpleITK")
    compared = 0
    for path, hounsfield in read_usable(folder).items():
        if path.parent.name not in NOT_ITK:
            reader = itk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(path))
            expected = itk.GetArrayFromImage(reader.Execute())[0]
            np.testing.assert_array_equal(hounsfield, expected, str(path))
            compared += 1
    assert compared >= least


encodings = st.fixed_dictionaries(
    {
        "syntax": st.sampled_from(
            [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, "deflated",
             RLELossless, JPEG2000Lossless]
        ),
        "allocated": st.sampled_from([16, 32]),
        "bits": st.integers(2, 16),
        "shift": st.integers(0, 4),
        "signed": st.booleans(),
        "slope": st.sampled_from(["1", "0.5", "2", "0.0625"]),
        "intercept": st.sampled_from(["0", "1", "-1024", "-1000.5", "-8192", "-32768"]),
        "seed": st.integers(0, 2**32 - 1),
    }
)  # fmt: skip


def save_as(path, syntax):
    """The file in a coded or the deflated syntax."""
    dataset = pydicom.dcmread(path)
    if syntax == "deflated":
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    else:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(given=encodings)
def test_whatever_the_encoding_the_values_are_slope_times_stored_plus_intercept(
    tmp_path_factory, given
):
    path = tmp_path_factory.mktemp("encoded") / "a.dcm"
    coded = given["syntax"] in (RLELossless, JPEG2000Lossless)
    # pydicom's encoder puts fewer bits into single bytes, which its decoder then does not expect.
    bits, signed = max(given["bits"], 9 * coded), given["signed"]
    allocated = 16 if coded else given["allocated"]
    shift = 0 if coded else min(given["shift"], allocated - bits)
    kind = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    values = np.random.default_rng(given["seed"]).integers(low, high, (32, 40))
    values[0, 0], values[-1, -1] = low, high - 1
    stored = ((values << shift) & ((1 << allocated) - 1)).astype(f"u{allocated // 8}").view(kind)
    plain = given["syntax"] in (ImplicitVRLittleEndian, ExplicitVRBigEndian)
    write_slice(
        path, stored, syntax=given["syntax"] if plain else ExplicitVRLittleEndian,
        BitsAllocated=allocated, BitsStored=bits, HighBit=bits - 1 + shift,
        RescaleSlope=given["slope"], RescaleIntercept=given["intercept"],
    )  # fmt: skip
    if coded or given["syntax"] == "deflated":
        save_as(path, given["syntax"])
    expected = values * float(given["slope"]) + float(given["intercept"])
    np.testing.assert_array_equal(read_hounsfield(path), expected.astype(np.float32))
    if not shift:
        dataset = pydicom.dcmread(path)
        found = apply_rescale(dataset.pixel_array, dataset)
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
