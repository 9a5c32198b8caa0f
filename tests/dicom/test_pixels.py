"""Hounsfield values: by hand, by the raw bytes, by other decoders."""

import struct

import numpy as np
import pydicom
import pytest
from conftest import shared
from dicom_files import LOSSLESS, encoded, read_raw, reason_of, replace_once, write_slice
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


def wrap(hounsfield) -> np.ndarray:
    """Signed values declared unsigned, as in 123 files of the competition."""
    return (np.asarray(hounsfield) % 4096).astype(np.uint16)


def make_disc(inside, outside, size=32) -> np.ndarray:
    across = np.arange(size) - size / 2 + 0.5
    return np.where(np.hypot(across, across[:, None]) < size / 3, inside, outside)


@pytest.mark.parametrize("intercept", [0, 1])
def test_signed_data_declared_unsigned_is_put_right(tmp_path, intercept):
    hounsfield = make_disc(40, -1000)
    hounsfield[14:16, 14:16] = [[3095, 2047], [-1, 0]]  # metal goes up to 3095
    stored = wrap(hounsfield)
    path = write_slice(tmp_path / "a.dcm", stored, BitsStored=12, RescaleIntercept=intercept)
    np.testing.assert_array_equal(read_hounsfield(path), hounsfield)
    np.testing.assert_array_equal(read_hounsfield(path, repair=False), stored + float(intercept))
    assert has_wrong_intercept(path)


@pytest.mark.parametrize("corner", [-2000, -1010])
def test_wrapped_values_below_air_show_signed_data_of_twelve_bits(tmp_path, corner):
    hounsfield = make_disc(40, -1000)
    hounsfield[:2, :2] = hounsfield[-2:, -2:] = corner
    path = write_slice(tmp_path / "a.dcm", wrap(hounsfield), BitsStored=12)
    np.testing.assert_array_equal(read_hounsfield(path), hounsfield)


@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        (make_disc(1064, 24), {"RescaleIntercept": -1024}),
        (make_disc(90, 0), {"RescaleIntercept": -50}),
        (make_disc(20, 0), {"RescaleSlope": 2}),
        (make_disc(3300, 0), {}),  # metal
        (make_disc(40, 4095), {}),  # padding at the top of the range
        (make_disc(3096, 40), {}),  # nothing in the corners
        (wrap(make_disc(40, -1000)), {"RescaleSlope": 0.5}),
        (wrap(make_disc(40, -1000)), {"RescaleIntercept": -50}),
        (wrap(make_disc(40, -1000)), {"BitsStored": 13}),
        (make_disc(1064, 24).astype(np.int16), {"PixelRepresentation": 1}),
    ],
)
def test_an_intercept_that_may_be_right_is_left_alone(tmp_path, stored, tags):
    stored = stored.astype(np.uint16)
    tags = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": 0, **tags}
    path = write_slice(tmp_path / "a.dcm", stored, **tags)
    expected = stored.astype(int) * tags["RescaleSlope"] + tags["RescaleIntercept"]
    np.testing.assert_array_equal(read_hounsfield(path), expected)
    assert not has_wrong_intercept(path)


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


def test_values_at_the_top_of_their_cells_are_read_by_the_high_bit(tmp_path):
    values = np.array([[1064, 24, 0, 4095]], np.uint16)
    tags = {"BitsStored": 12, "HighBit": 15, "RescaleIntercept": -1024}
    path = write_slice(tmp_path / "a.dcm", values << 4, **tags)
    np.testing.assert_array_equal(read_hounsfield(path), [[40, -1000, -1024, 3071]])
    # Bits below and above the value may be an overlay's.
    tags["HighBit"] = 13
    path = write_slice(tmp_path / "b.dcm", values << 2 | 0x8001, **tags)
    np.testing.assert_array_equal(read_hounsfield(path), [[40, -1000, -1024, 3071]])
    path = write_slice(tmp_path / "c.dcm", values, **{**tags, "HighBit": 15})
    assert reason_of(path, PixelError) == "values do not lie where the high bit says: it is 15"


def test_a_dark_slice_may_have_fewer_bits_but_none_above_them(tmp_path):
    tags = {"BitsStored": 8, "RescaleIntercept": -1024}
    path = write_slice(tmp_path / "a.dcm", np.array([[224, 24, 255]], np.uint16), **tags)
    np.testing.assert_array_equal(read_hounsfield(path), [[-800, -1000, -769]])
    path = write_slice(tmp_path / "b.dcm", np.array([[224, 24, 256]], np.uint16), **tags)
    assert reason_of(path, PixelError) == "values do not fit into the bits stored: BitsStored is 8"


@pytest.mark.parametrize(
    ("bits", "kind", "tags", "padding"),
    [
        (12, np.uint16, {"PixelPaddingValue": 4095}, [4095]),
        (16, np.uint16, {"PixelPaddingValue": 63536}, [63536]),
        (12, np.uint16, {"PixelPaddingValue": 63536}, [63536]),  # of more bits than are stored
        (16, np.int16, {"PixelPaddingValue": 30000}, [30000]),
        (16, np.int16, {"PixelPaddingValue": -32768}, [-32768]),
        (16, np.uint16, {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}, [4000, 4095]),
        (16, np.uint16, {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}, [4010, 4000]),
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_padding_is_air(tmp_path, bits, kind, tags, padding, syntax):
    stored = make_disc(1064, 24).astype(kind)
    stored[:2, :2], stored[-2:, -2:] = padding[0], padding[-1]
    path = write_slice(tmp_path / "a.dcm", stored, BitsStored=bits, RescaleIntercept=-1024,
                       syntax=syntax, **tags)  # fmt: skip
    hounsfield = read_hounsfield(path)
    assert (hounsfield[:2, :2] <= -1000).all()
    assert (hounsfield[-2:, -2:] <= -1000).all()
    hounsfield[:2, :2] = hounsfield[-2:, -2:] = -1000
    np.testing.assert_array_equal(hounsfield, make_disc(40, -1000))


def test_padding_that_stands_in_no_corner_is_tissues_value(tmp_path):
    stored = make_disc(0, -1000).astype(np.int16)
    path = write_slice(tmp_path / "a.dcm", stored, PixelPaddingValue=0)
    np.testing.assert_array_equal(read_hounsfield(path), stored)
    path = write_slice(tmp_path / "b.dcm", make_disc(40, -2000).astype(np.int16),
                       PixelPaddingValue=-2000)  # fmt: skip
    assert read_hounsfield(path)[0, 0] == -2000  # it is below air already


def test_one_pixel_in_a_corner_does_not_make_tissue_padding(tmp_path):
    stored = make_disc(40, -1000).astype(np.int16)
    for corner in [(0, 0), (0, 1), (1, 0)], [(-1, 0), (-1, 1), (-2, 1)]:
        stored[tuple(zip(*corner, strict=True))] = 40
    path = write_slice(tmp_path / "a.dcm", stored, PixelPaddingValue=40)
    np.testing.assert_array_equal(read_hounsfield(path), stored)


@pytest.mark.parametrize("value", [[1064, 7], [1064, 7, 9]])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_padding_of_more_than_one_number_is_passed_over(tmp_path, value, syntax):
    stored = make_disc(1064, 24).astype(np.uint16)
    stored[:2, :2] = 1064
    path = write_slice(tmp_path / "a.dcm", stored, RescaleIntercept=-1024, syntax=syntax,
                       PixelPaddingValue=value)  # fmt: skip
    np.testing.assert_array_equal(read_hounsfield(path), stored.astype(np.int16) - 1024)


ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"


def itemize(path, *items: bytes, syntax=ExplicitVRLittleEndian):
    """Put a file's Pixel Data, of undefined length, into items."""
    content = path.read_bytes()
    start = content.rindex(b"\xe0\x7f\x10\x00")
    head = b"OW\0\0" * (not syntax.is_implicit_VR) + b"\xff" * 4
    body = b"".join(ITEM + len(item).to_bytes(4, "little") + item for item in items)
    path.write_bytes(content[: start + 4] + head + body + END)
    return path


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("table", [[], [b""], [bytes(4)]])
def test_pixels_in_items_that_are_not_coded_are_read_without_the_items(tmp_path, syntax, table):
    stored = make_disc(40, -1000).astype(np.int16)
    pixels = stored.tobytes()
    for items in ([pixels], [pixels[:1000], pixels[1000:]]) if table else ([pixels],):
        path = write_slice(tmp_path / "a.dcm", stored, syntax=syntax)
        itemize(path, *table, *items, syntax=syntax)
        assert check_pixel_bytes(read_header(path)) is None
        np.testing.assert_array_equal(read_hounsfield(path), stored)
    itemize(path, *table, pixels[:-2], syntax=syntax)
    assert "2046 of 2048 bytes" in reason_of(path, PixelError)


def test_coded_pixels_under_a_native_syntax_and_the_reverse(tmp_path):
    stored = make_disc(40, -1000).astype(np.int16)
    path = itemize(write_slice(tmp_path / "a.dcm", stored), b"", bytes(500))
    reason = "pixel data is cut short, or coded: 516 of 2048 bytes"
    assert reason_of(path, PixelError) == reason
    assert str(check_pixel_bytes(read_header(path))) == reason
    path = itemize(write_slice(tmp_path / "a.dcm", stored), b"", bytes(2500))
    reason = "items of the pixel data do not have the header's size: 2500 of 2048 bytes"
    assert reason_of(path, PixelError) == reason
    path = write_slice(tmp_path / "b.dcm", stored)
    replace_once(path, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")  # RLE
    np.testing.assert_array_equal(read_hounsfield(path), stored)
    path.write_bytes(path.read_bytes()[:-10])
    reason = "pixel data is not coded as its transfer syntax says: RLE Lossless"
    assert reason_of(path) == reason
    with pytest.raises(DicomError, match=reason):
        read_header(path)


@pytest.mark.parametrize("cut", [0, 2])
def test_a_data_set_in_another_form_than_its_meta_information_says(tmp_path, cut):
    stored = make_disc(40, -1000).astype(np.int16)
    explicit, implicit = (
        write_slice(tmp_path / f"{syntax}.dcm", stored, syntax=syntax, SOPInstanceUID="1.2")
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    )
    metas, sets = zip(*(split_meta(path) for path in (explicit, implicit)), strict=True)
    for path, meta, dataset in ((explicit, metas[0], sets[1]), (implicit, metas[1], sets[0])):
        path.write_bytes(meta + dataset[: len(dataset) - cut])
        missing = check_pixel_bytes(read_header(path))
        if cut:
            assert missing == ("pixel data is cut short", "2046 of 2048 bytes")
            assert "2046 of 2048 bytes" in reason_of(path, PixelError)
        else:
            assert missing is None
            np.testing.assert_array_equal(read_hounsfield(path), stored)


def split_meta(path) -> tuple[bytes, bytes]:
    """A file's preamble and meta information, and its data set."""
    content = path.read_bytes()
    end = 144 + int.from_bytes(content[140:144], "little")
    return content[:end], content[end:]
