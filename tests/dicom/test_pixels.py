"""One DICOM file: Hounsfield values by hand or by its raw bytes, and a reason for every defect."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pydicom
import pytest
from conftest import ROOT, shared
from dicom_files import read_raw, replace_once, write_slice
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from kit.dicom.header import NotACTSliceError, PixelError, read_header
from kit.dicom.parsing import DicomError, UnreadableError
from kit.dicom.pixels import check_pixel_bytes, has_wrong_intercept, read_hounsfield

LOSSLESS = {
    "implicit": "LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2",
    "explicit": "LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1",
    "big endian": "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2",
    "deflated": "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99",
    "RLE": "RLELosslessTransferSyntax_1.2.840.10008.1.2.5",
    "JPEG .57": "JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57",
    "JPEG .70": "JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70",
    "JPEG-LS .80": "JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80",
    "JPEG 2000 .90": "JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90",
}


def encoded(name: str):
    return shared(f"data/cornerstone3D/CTImage.dcm_{name}.dcm")


def reason_of(path, error=DicomError, **options) -> str:
    with pytest.raises(error) as caught:
        read_hounsfield(path, **options)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50",
            "8 bits stored in 8",
        ),
        ("JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51", "does not keep Hounsfield units"),
        (
            "JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53",
            "no decoder for its compression: JPEG S",
        ),
        (
            "JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55",
            "no decoder for its compression: JPEG F",
        ),
    ],
)
def test_encodings_that_cannot_be_believed_are_refused_by_the_header_already(name, reason):
    assert reason in reason_of(encoded(name), NotACTSliceError)
    with pytest.raises(NotACTSliceError, match=reason):
        read_header(encoded(name))


def test_fragments_offset_tables_and_byte_order_change_no_value():
    folder = shared("data/dicomParser")
    expected = read_raw(folder / "CT1_UNC.explicit_little_endian.dcm")
    intercept = int(pydicom.dcmread(folder / "CT1_UNC.explicit_little_endian.dcm").RescaleIntercept)
    files = sorted(folder.glob("CT1_UNC.*.dcm"))
    assert len(files) == 6
    for file in files:
        np.testing.assert_array_equal(read_hounsfield(file), expected + intercept, str(file))


def test_a_perfusion_map_of_two_frames_is_not_one_slice():
    files = sorted(shared("data/dicomParser").glob("CT0012.*.dcm"))
    assert len(files) == 10
    for file in files:
        assert "Enhanced CT Image Storage" in reason_of(file, NotACTSliceError)


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a DICOM file"),
        (b"ID,Label\nID_0_any,1\n" * 40, "not a DICOM file"),
        (b"\x08\x00" + bytes(500), "not a DICOM file"),
        (bytes(128) + b"DICM", "file is cut short, or holds no image"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path, content, reason):
    path = tmp_path / "a file"
    path.write_bytes(content)
    assert reason_of(path) == reason


def test_a_file_that_is_not_there_or_is_no_file_gives_its_reason(tmp_path):
    assert reason_of(tmp_path / "none.dcm", UnreadableError) == "No such file or directory"
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    assert "not a regular file" in reason_of(tmp_path / "pipe", UnreadableError)
    assert "not a regular file" in reason_of(tmp_path, UnreadableError)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "MR"}, "not a CT image: Modality is MR"),
        ({"Modality": None}, "Modality is missing"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "Secondary Capture Image Storage"),
        ({"ImageType": ["DERIVED", "PRIMARY", "LOCALIZER"]}, "ImageType says LOCALIZER"),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            "a colour image: ",
        ),
        ({"PhotometricInterpretation": "YBR_FULL"}, "PhotometricInterpretation is YBR_FULL"),
        ({"NumberOfFrames": 2}, "NumberOfFrames is 2"),
        ({"Rows": None}, "Rows is missing"),
        ({"Rows": 0}, "0 x 8 pixels"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels"),
        ({"BitsAllocated": 8, "BitsStored": 8}, "8 bits stored in 8"),
        ({"BitsStored": 17}, "17 bits stored in 16"),
        ({"PixelRepresentation": 7}, "PixelRepresentation is neither 0 nor 1: it is 7"),
        ({"RescaleSlope": None}, "be Hounsfield units: RescaleSlope is missing"),
        (
            {"RescaleIntercept": None},
            "be Hounsfield units: RescaleIntercept is missing",
        ),
        ({"RescaleSlope": 0}, "not Hounsfield units: RescaleSlope is 0"),
        ({"RescaleSlope": -1}, "not Hounsfield units: RescaleSlope is -1"),
        ({"RescaleSlope": 17}, "not Hounsfield units: RescaleSlope is 17"),
        ({"RescaleSlope": "1e-30"}, "not Hounsfield units: RescaleSlope is 1e-30"),
        ({"RescaleSlope": "19410203"}, "RescaleSlope is beyond 100000"),
        ({"RescaleSlope": ["1", "1"]}, "RescaleSlope is not a number"),
        ({"RescaleIntercept": 40000}, "not Hounsfield units: RescaleIntercept is 40000"),
        ({"RescaleType": "Z_EFF"}, "not Hounsfield units: RescaleType is Z_EFF"),
        ({"RescaleType": "OD"}, "not Hounsfield units: RescaleType is OD"),
        ({"RescaleType": "1941"}, "not Hounsfield units: RescaleType is another"),
        ({"Modality": "YAMADA TARO"}, "not a CT image: Modality is another"),
        ({"PhotometricInterpretation": "YAMADA"}, "PhotometricInterpretation is another"),
        ({"SOPClassUID": "19410203"}, "not a CT image: SOPClassUID is an unknown UID"),
        ({"NumberOfFrames": "19410203"}, "NumberOfFrames is beyond 100000"),
        ({"PixelData": None}, "holds no pixel data"),
        ({"PixelData": bytes(126)}, "pixel data is cut short: 126 of 128 bytes"),
    ],
)
def test_a_header_that_is_no_ct_slice_is_refused_with_its_reason(tmp_path, tags, reason):
    path = write_slice(tmp_path / "a.dcm", **tags)
    assert reason in reason_of(path)


@pytest.mark.parametrize("number", [b"nan   ", b"inf   ", b"1e+09 ", b"1,0   ", b"Yamada"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_rescaling_by_what_is_no_number_is_refused_without_quoting_it(tmp_path, keyword, number):
    path = write_slice(tmp_path / "a.dcm", **{keyword: "7.7777"})
    reason = reason_of(replace_once(path, b"7.7777", number), NotACTSliceError)
    assert reason.startswith(f"values are not Hounsfield units: {keyword} is ")
    assert "nan" not in reason
    assert "Yamada" not in reason


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


def test_a_patient_id_in_japanese_is_read_in_its_character_set(tmp_path):
    for charset, name in (("ISO_IR 192", "山田太郎"), (["", "ISO 2022 IR 87"], "山田")):
        path = write_slice(tmp_path / "a.dcm", SpecificCharacterSet=charset, PatientID=name)
        assert read_header(path).values["PatientID"] == name


def test_header_values_are_those_that_pydicom_gives():
    for path in ("dcm_qa_ct/GE/14.dcm", "dcm_qa_ct/Philips/S21570/S2010/I10", "monai/7106"):
        path = shared(f"data/{path}")
        values, expected = read_header(path).values, pydicom.dcmread(path)
        for keyword in ("Rows", "Columns", "BitsStored", "PixelRepresentation"):
            assert values[keyword] == expected[keyword].value, keyword
        for keyword in ("PatientID", "SOPInstanceUID", "SeriesInstanceUID", "Modality"):
            assert values[keyword] == str(expected[keyword].value), keyword
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            found = [float(number) for number in values[keyword].split("\\")]
            assert found == list(expected[keyword].value), keyword
        assert float(values["RescaleIntercept"]) == expected.RescaleIntercept


MISSING_DECODERS = """
import sys
for name in ("pylibjpeg", "openjpeg", "libjpeg", "rle", "gdcm", "jpeg_ls", "PIL"):
    sys.modules[name] = None
from kit.dicom import DicomError, read_hounsfield
for path in sys.argv[1:]:
    try:
        print(read_hounsfield(path).max())
    except DicomError as error:
        print(error.reason)
"""


def test_a_missing_decoder_is_named_with_what_to_install():
    names = [LOSSLESS[name] for name in ("JPEG 2000 .90", "JPEG-LS .80", "JPEG .70", "RLE")]
    paths = [str(encoded(name)) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", MISSING_DECODERS, *paths],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *missing, rle = done.stdout.splitlines()
    assert rle == "1378"  # pydicom's own
    assert [reason.split(" needs ")[0].split(": ")[1] for reason in missing] == [
        "JPEG 2000 Image Compression (Lossless Only)",
        "JPEG-LS Lossless Image Compression",
        "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
    ]
    for reason in missing:
        assert reason.startswith("a decoder is not installed: ")
        assert reason.endswith("pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg")


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


def test_a_deflated_file_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    path = encoded(LOSSLESS["deflated"])
    monkeypatch.setattr("kit.dicom.parsing.MAX_SLICE_BYTES", 500_000)
    assert path.stat().st_size < 500_000 < len(pydicom.dcmread(path).PixelData)
    assert "inflates to more than any CT slice" in reason_of(path, UnreadableError)


def test_a_member_of_a_zip_is_read_in_place_and_a_bomb_is_not(tmp_path, monkeypatch):
    stored = np.arange(64, dtype=np.int16).reshape(8, 8)
    path = write_slice(tmp_path / "a.dcm", stored)
    with zipfile.ZipFile(tmp_path / "A.ZIP", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "in/a.dcm")
        archive.writestr("bomb.dcm", path.read_bytes() + bytes(3_000_000))
    np.testing.assert_array_equal(read_hounsfield(tmp_path / "A.ZIP/in/a.dcm"), stored)
    assert "no such member" in reason_of(tmp_path / "A.ZIP/b.dcm", UnreadableError)
    monkeypatch.setattr("kit.files.MAX_MEMBER_BYTES", 2_000_000)
    assert reason_of(tmp_path / "A.ZIP/bomb.dcm").endswith("any file of a head CT: 3 MB")
    np.testing.assert_array_equal(read_hounsfield(tmp_path / "A.ZIP/in/a.dcm"), stored)


def test_damage_behind_the_header_of_a_zips_member_does_not_cost_the_header(tmp_path):
    path = write_slice(tmp_path / "a.dcm", np.arange(4096, dtype=np.int16).reshape(64, 64))
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as stored:
        stored.write(path, "a.dcm")
    content = bytearray(archive.read_bytes())
    content[content.index(path.read_bytes()[-64:])] ^= 1
    archive.write_bytes(content)
    assert read_header(archive / "a.dcm").values == read_header(path).values
    assert "zip member is damaged: Bad CRC-32" in reason_of(archive / "a.dcm", UnreadableError)


def test_errors_pass_between_processes_with_their_reason():
    error = pickle.loads(pickle.dumps(PixelError("a.dcm", "cut short", "2 of 3")))  # noqa: S301
    assert isinstance(error, PixelError)
    assert (error.path, error.code, error.detail) == ("a.dcm", "cut short", "2 of 3")
    assert (error.reason, str(error)) == ("cut short: 2 of 3", "a.dcm: cut short: 2 of 3")


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
