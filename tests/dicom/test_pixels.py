"""Hounsfield values: by hand, by the raw bytes, by other decoders."""

import struct

import numpy as np
import pydicom
import pytest
from conftest import shared
from dicom_files import LOSSLESS, encoded, read_raw, reason_of, write_slice
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from kit.dicom.header import PixelError, read_header
from kit.dicom.parsing import DicomError
from kit.dicom.pixels import check_pixel_bytes, has_wrong_intercept, read_hounsfield


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_lossless_encoding_of_one_slice_gives_the_same_values(name):
    stored = read_raw(encoded(LOSSLESS["explicit"]))
    assert (stored.min(), stored.max()) == (-2000, 2402)
    hounsfield = read_hounsfield(encoded(LOSSLESS[name]))
    assert hounsfield.dtype == np.int16
    np.testing.assert_array_equal(hounsfield, stored - 1024)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("JPEGLSLossyTransferSyntax_1.2.840.10008.1.2.4.81", 1),
        # One of 262,144 pixels is 5 off with OpenJPEG 2.5; all others are within 4.
        ("JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91", 5),
    ],
)
def test_lossy_encodings_made_for_sixteen_bits_stay_near_the_values(name, most):
    difference = np.abs(
        read_hounsfield(encoded(name)).astype(int) - read_raw(encoded(LOSSLESS["explicit"])) + 1024
    )
    assert 0 < difference.max() <= most
    assert (difference > 4).mean() < 1e-5


def test_fragments_offset_tables_and_byte_order_change_no_value():
    folder = shared("data/dicomParser")
    expected = read_raw(folder / "CT1_UNC.explicit_little_endian.dcm")
    intercept = int(pydicom.dcmread(folder / "CT1_UNC.explicit_little_endian.dcm").RescaleIntercept)
    files = sorted(folder.glob("CT1_UNC.*.dcm"))
    assert len(files) == 6
    for file in files:
        np.testing.assert_array_equal(read_hounsfield(file), expected + intercept, str(file))


def test_thirteen_bits_whose_sign_only_the_header_knows_are_read_as_signed():
    openjpeg = pytest.importorskip("openjpeg")
    path = shared("data/pydicom/J2K_pixelrep_mismatch.dcm")
    stream = pydicom.encaps.get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    unsigned = openjpeg.decode(stream).astype(int)
    assert (unsigned.min(), unsigned.max()) == (0, 8191)
    expected = np.where(unsigned >= 4096, unsigned - 8192, unsigned)
    np.testing.assert_array_equal(read_hounsfield(path), expected)


def test_a_real_head_is_its_stored_values_plus_its_intercept():
    head = shared("data/dcm_qa_ct/GE/14.dcm")
    hounsfield = read_hounsfield(head)
    np.testing.assert_array_equal(hounsfield, read_raw(head))
    assert hounsfield.min() == -1500  # padding outside the field of view
    assert 0 < np.median(hounsfield[200:312, 200:312]) < 60  # brain
    phantom = shared("data/dcm_qa_ct/Philips/S21570/S2010/I10")
    np.testing.assert_array_equal(read_hounsfield(phantom), read_raw(phantom).astype(int) - 1024)


@pytest.mark.parametrize("intercept", [0, 1, -99])
def test_signed_data_declared_unsigned_is_put_right(tmp_path, intercept):
    hounsfield = np.array([[-1000, -1, 0], [40, 2047, 3095]])
    stored = (hounsfield % 4096).astype(np.uint16)
    path = write_slice(tmp_path / "a.dcm", stored, BitsStored=12, RescaleIntercept=intercept)
    np.testing.assert_array_equal(read_hounsfield(path), hounsfield)
    np.testing.assert_array_equal(read_hounsfield(path, repair=False), stored + float(intercept))
    assert has_wrong_intercept(read_header(path))


@pytest.mark.parametrize(
    ("bits", "kind", "intercept"),
    [(12, np.uint16, -1024), (12, np.uint16, -100), (12, np.int16, 0), (16, np.uint16, 0)],
)
def test_an_intercept_that_may_be_right_is_left_alone(tmp_path, bits, kind, intercept):
    stored = np.array([[0, 24, 1064, 2047]], kind)
    path = write_slice(tmp_path / "a.dcm", stored, BitsStored=bits, RescaleIntercept=intercept)
    np.testing.assert_array_equal(read_hounsfield(path), stored.astype(int) + intercept)


def test_the_sign_of_twelve_bits_is_extended_and_the_bits_above_are_ignored(tmp_path):
    # −100 is 0xF9C in twelve bits; 0x7… above it is what an overlay leaves there.
    stored = np.array([[0x0F9C, 0x7F9C, 0x0064, 0x7064, 0x0800, 0x07FF]], np.uint16)
    path = write_slice(tmp_path / "a.dcm", stored, BitsStored=12, PixelRepresentation=1)
    np.testing.assert_array_equal(read_hounsfield(path), [[-100, -100, 100, 100, -2048, 2047]])
    path = write_slice(tmp_path / "b.dcm", stored, BitsStored=12, RescaleIntercept=-1024)
    expected = np.array([[0xF9C, 0xF9C, 100, 100, 2048, 2047]]) - 1024
    np.testing.assert_array_equal(read_hounsfield(path), expected)


def test_another_slope_multiplies_before_the_intercept_is_added(tmp_path):
    stored = np.array([[0, 3, 1000], [2000, -7, 32767]], np.int16)
    path = write_slice(tmp_path / "a.dcm", stored, RescaleSlope=0.5, RescaleIntercept="-1000.25")
    hounsfield = read_hounsfield(path)
    assert hounsfield.dtype == np.float32
    np.testing.assert_array_equal(
        hounsfield, [[-1000.25, -998.75, -500.25], [-0.25, -1003.75, 15383.25]]
    )


@pytest.mark.parametrize(
    "tags", [{"RescaleType": "HU"}, {"RescaleType": "US"}, {"RescaleType": ""}]
)
@pytest.mark.parametrize("slope", ["0.01", "16"])
def test_slopes_that_a_scanner_may_use_and_the_name_of_its_unit_are_believed(tmp_path, tags, slope):
    path = write_slice(tmp_path / "a.dcm", np.full((2, 2), 100, np.int16), RescaleSlope=slope,
                       **tags)  # fmt: skip
    np.testing.assert_allclose(read_hounsfield(path), 100 * float(slope))


def test_values_beyond_sixteen_bits_do_not_wrap(tmp_path):
    stored = np.array([[0, 65535, 27476]], np.uint16)
    path = write_slice(tmp_path / "a.dcm", stored, RescaleIntercept=-1024)
    np.testing.assert_array_equal(read_hounsfield(path), [[-1024, 64511, 26452]])


def test_monochrome1_changes_the_display_and_no_value(tmp_path):
    stored = np.array([[-1000, 0, 80]], np.int16)
    path = write_slice(tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_hounsfield(path), stored)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_plain_encodings_are_read_with_and_without_a_preamble(tmp_path, syntax, bare):
    stored = np.arange(-60, 60, dtype=np.int16).reshape(10, 12)
    path = write_slice(tmp_path / "a.dcm", stored, syntax=syntax, bare=bare)
    assert (path.read_bytes()[128:132] == b"DICM") != bare
    np.testing.assert_array_equal(read_hounsfield(path), stored)
    assert check_pixel_bytes(read_header(path)) is None


@pytest.mark.parametrize("shape", [(256, 256), (768, 768), (300, 200), (1, 512)])
def test_rows_and_columns_are_free(tmp_path, shape):
    stored = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    path = write_slice(tmp_path / "a.dcm", stored, BitsStored=16)
    np.testing.assert_array_equal(read_hounsfield(path), stored)


def test_pixels_cut_short_are_known_from_the_header_and_refused_at_reading(tmp_path):
    path = write_slice(tmp_path / "a.dcm", np.zeros((16, 16), np.int16))
    path.write_bytes(path.read_bytes()[:-300])
    missing = check_pixel_bytes(read_header(path))
    assert missing == ("pixel data is cut short", "212 of 512 bytes")
    assert reason_of(path, PixelError) == str(missing)


def test_bytes_behind_the_pixels_do_no_harm(tmp_path):
    stored = np.arange(64, dtype=np.int16).reshape(8, 8)
    path = write_slice(tmp_path / "a.dcm", stored, DataSetTrailingPadding=bytes(200))
    np.testing.assert_array_equal(read_hounsfield(path), stored)
    assert check_pixel_bytes(read_header(path)) is None


@pytest.mark.parametrize(
    ("name", "marker", "place", "form"),
    [
        ("JPEG 2000 .90", b"\xff\x4f\xff\x51", 8, ">II"),
        ("JPEG-LS .80", b"\xff\xf7", 5, ">HH"),
        ("JPEG .70", b"\xff\xc3", 5, ">HH"),
    ],
)
def test_a_coded_image_larger_than_the_header_says_is_not_unpacked(
    tmp_path, monkeypatch, name, marker, place, form
):
    content = bytearray(encoded(LOSSLESS[name]).read_bytes())
    struct.pack_into(form, content, content.index(marker) + place, 30000, 30000)
    (tmp_path / "bomb.dcm").write_bytes(content)
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda _: pytest.fail("decoded")))
    reason = reason_of(tmp_path / "bomb.dcm", PixelError)
    assert reason.endswith("it is (30000, 30000), the header says (512, 512)")


@pytest.mark.parametrize("syntax", ["JPEG2000LosslessOnly", "JPEGLSLossless"])
def test_a_coded_file_that_is_cut_short_says_so(syntax, tmp_path):
    folder = shared("data/cornerstone3D")
    source = next(
        path for path in sorted(folder.iterdir()) if f"_{syntax}TransferSyntax" in path.name
    )
    content = source.read_bytes()
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(content[: len(content) - 2000])
    with pytest.raises(DicomError, match=r"cut short|cannot be decoded"):
        read_hounsfield(cut)
