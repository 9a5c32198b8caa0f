"""The table of series: what is unusual about each, and which stands for its study."""

import pydicom
import pytest
from dicom_files import AIR, CORONAL, SAGITTAL, write_series, write_slice

from kit.slices import index_slices, series
from kit.slices.series import choose_series, describe_series


def describe(folder):
    return describe_series(*index_slices(folder, 1)).set_index("SeriesInstanceUID")


def test_a_series_is_described_by_its_headers_and_its_positions(tmp_path):
    told = {
        "StudyDescription": "CT HEAD",
        "SeriesDescription": "HEAD 5mm",
        "BodyPartExamined": "HEAD",
        "ConvolutionKernel": ["H30s", "3"],
        "SliceThickness": "4.80",
    }
    write_series(tmp_path, "1", **told)
    row = describe(tmp_path).loc["1.2.1"]
    assert row.drop("warnings").to_dict() == {
        "PatientID": "P1",
        "StudyInstanceUID": "1.2.1",
        "StudyDescription": "CT HEAD",
        "SeriesDescription": "HEAD 5mm",
        "plane": "axial",
        "ConvolutionKernel": "H30s\\3",
        "SliceThickness": 4.8,
        "spacing": 5.0,
        "ContrastBolusAgent": None,
        "BodyPartExamined": "HEAD",
        "slices": 12,
        "left_out": 0,
        "series": "P1/1.2.1/1.2.1",
    }
    assert row["warnings"] == ""


WARNED = {
    "contrast": [
        {"ContrastBolusAgent": "OMNIPAQUE"},
        {"ContrastBolusAgent": "ISOVUE-370 NON-IONIC"},
        {"SeriesDescription": "Head C+"},
        {"SeriesDescription": "CT POST CONTRAST"},
        {"SeriesDescription": "CTA_head"},
    ],
    "bone kernel": [
        {"ConvolutionKernel": "BONEPLUS"},
        {"ConvolutionKernel": ["Hr64h", "3"]},
        {"ConvolutionKernel": "FC30"},
        {"ConvolutionKernel": "YD"},
        {"SeriesDescription": "Thin Bone"},
    ],
    "other body part": [
        {"BodyPartExamined": "KNEE"},
        {"SeriesDescription": "CHEST 5mm"},
        {"BodyPartExamined": "HEAD", "SeriesDescription": "C-SPINE 2mm"},
    ],
    "fewer than 12 slices": [{"count": 11}],
    "more than 80 slices": [{"count": 81}],
    "spacing outside 2 to 10 mm": [{"spacing": 1.99}, {"spacing": 10.01}],
    "no air below -200 HU": [{"stored": AIR + 800}],
}
PLAIN = [
    {"ContrastBolusAgent": "NO IV CONTRAST"},
    {"SeriesDescription": "HEAD WITHOUT CONTRAST"},
    {"ConvolutionKernel": "H31s"},
    {"BodyPartExamined": "HEADNECK"},
    {"count": 80, "spacing": 2.0},
    {"spacing": 10.0},
    {"stored": AIR + 799},
]


EACH = [(name, how) for name, each in {**WARNED, "": PLAIN}.items() for how in each]


@pytest.mark.parametrize(("warning", "how"), EACH)
def test_what_is_unusual_for_a_head_without_contrast_is_a_warning(warning, how, tmp_path):
    write_series(tmp_path, "1", **how)
    assert describe(tmp_path)["warnings"].tolist() == [warning]


# Texts as scanners of several makers, and hospitals of several countries, write them.
CONTRAST = [
    "C+, HEAD + C, +C, HEAD W CONTRAST, HEAD W IV CON, BRAIN W, IV CONTRAST, WITH IV CONTRAST",
    "HEAD_POST, Post-contrast, CONTRAST ENHANCED, CE head, DELAYED 5MM, C-SPINE WITH CONTRAST",
    "Kopf mit KM, Schädel KM art., CRANIO CON MDC, CT AVEC INJECTION, CRANEO CON CONTRASTE",
    "CTA 0.6, CT ANGIO, CTV, VPCT, Perfusion 5.0, Neuro DynMulti4D, TEST BOLUS, Monitoring",
    "HEAD W/WO CONTRAST, WITH AND WITHOUT CONTRAST",
]
NO_CONTRAST = [
    "HEAD 5mm, Head wo, HEAD W/O, w/o contrast, WITHOUT IV CONTRAST, NON CONTRAST, NONCON, NCCT",
    "HEAD NONCONTRAST, PRE CONTRAST THIN, CT PLAIN THIN, UNENHANCED, Contrast: none, C- 5mm",
    "nativ, ohne KM, SENZA MDC, SIN CONTRASTE, SANS INJECTION, CT I To S, CT 4cc sec 150cc D3D on",
    "POST FOSSA 2.5, Post Op Head, POST-OP, POST TRAUMA, POSTERIOR FOSSA, HEAD INJURY, INFANT",
]
AGENTS = ["CONTRAST, Omnipaque 350, NON IONIC, IV, Y, YES, Ultravist, APPLIED, 0.5 ml, 造影"]
NO_AGENTS = [
    "0, -, 0 ml, N, N/A, NA, NIL, NULL, FALSE, UNKNOWN, No, NONE, NONE., NONE GIVEN, W/O, Plain",
    "non contrast, Without Contrast, NO ORAL OR IV, NO CONTRAST GIVEN, unenhanced, ohne, nativ",
]
SHARP = [
    "BONE, BONEPLUS, HD BONE, EDGE, LUNG, H60s, H70h, H_SHARP_C, Hr64h\\3, Br64d, J70h\\3",
    "U90u, AB60, FC30, FC81, FC35-H, YD, D, E, L, YC",
]
SOFT = [
    "STANDARD, SOFT, BRAIN, DETAIL, CHST, H31s, H30f, H40s, J30s\\3, Hr38, Hc40, Qr40d, Br40d\\3",
    "FC21, FC26, FC64, FC67, FC13-H, UA, UB, UC, A, B, C, H_SOFT_B, FL03",
]
BONE = [
    "BONE, THIN BONE, HEAD_BONE_0.625, BONEPLUS, BONES, Schaedel Knochen, Knochenfenster, OSSEUX",
    "HUESO, OSSO, Head 1.0 H60s, HeadSeq 0.75 Hr64, FENETRE OSSEUSE, Kopf 1.0 J70h",
]
NO_BONE = ["HEAD 5mm, Head 5.0 H31s, CT 150cc, 5.0 Hr40, TEMPORAL, BONE REMOVED, Brain no bone"]


def split(lists):
    return [text for texts in lists for text in texts.split(", ")]


@pytest.mark.parametrize(
    ("judge", "yes", "no"),
    [
        (lambda text: series._has_contrast(None, text), CONTRAST, NO_CONTRAST),
        (lambda text: series._has_contrast(text, None), AGENTS, NO_AGENTS),
        (lambda text: series._is_sharp(text, None), SHARP, SOFT),
        (lambda text: series._is_sharp(None, text), BONE, NO_BONE),
    ],
    ids=["description, contrast", "agent", "kernel", "description, kernel"],
)
def test_the_words_of_several_makers_and_languages_are_understood(judge, yes, no):
    assert [text for text in split(yes) if not judge(text)] == []
    assert [text for text in split(no) if judge(text)] == []


ELSEWHERE = [
    ("KNEE", None), ("CSPINE", None), ("NECK", None), ("SINUS", None), (None, "CT_CHEST 5mm"),
    (None, "HWS 2.0"), ("HEAD", "CSPINE BONE"), ("HEAD", "CERVICAL SPINE"), ("SKULL", "NECK"),
]  # fmt: skip
HERE = [
    ("HEAD", None), ("SKULL", "5mm"), ("SCHÄDEL", None), ("CRÂNE", None), ("CABEZA", None),
    ("HOOFD", None), ("UNDEFINED", None), (None, None), (None, "Gehirn"), (None, "SMART PREP"),
    (None, "Darstellung 5mm"), (None, "Hippocampus"), (None, "5mm legacy"),
    ("HEAD", "TRAUMA HEAD/C-SPINE"),
]  # fmt: skip


@pytest.mark.parametrize(("pairs", "expected"), [(ELSEWHERE, True), (HERE, False)])
def test_the_description_tells_the_part_of_the_body_before_the_protocol(pairs, expected):
    assert [pair for pair in pairs if series._is_elsewhere(*pair) != expected] == []


def test_two_acquisitions_at_the_same_places_are_a_warning(tmp_path):
    write_series(tmp_path, "1", AcquisitionNumber=1)
    for path in sorted((tmp_path / "1").iterdir()):
        path.rename(path.with_suffix(".first"))
    write_series(tmp_path, "1", AcquisitionNumber=2)
    for path in (tmp_path / "1").glob("*.first"):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID += ".9"
        dataset.save_as(path)
    table = describe(tmp_path)
    assert table["warnings"].tolist() == ["two acquisitions at the same places"]
    assert table[["slices", "spacing"]].values.tolist() == [[24, 5.0]]


@pytest.mark.parametrize(("plane", "name"), [(CORONAL, "coronal"), (SAGITTAL, "sagittal")])
def test_a_series_of_another_plane_is_listed_without_a_slice(plane, name, tmp_path):
    write_series(tmp_path, "1")
    write_series(tmp_path, "2", plane=plane, count=3, SeriesDescription="MPR")
    row = describe(tmp_path).loc["1.2.2"]
    assert row[["plane", "slices", "left_out", "spacing"]].tolist() == [name, 0, 3, 5.0]
    assert (row["warnings"], row["SeriesDescription"]) == ("plane is not axial", "MPR")


def test_a_slice_of_another_plane_is_left_out_of_its_series(tmp_path):
    write_series(tmp_path, "1")
    scout = {"ImageOrientationPatient": CORONAL, "SOPInstanceUID": "1.2.1.99"}
    write_slice(tmp_path / "scout.dcm", AIR, SeriesInstanceUID="1.2.1", **scout)
    row = describe(tmp_path).loc["1.2.1"]
    assert row[["slices", "left_out", "plane"]].tolist() == [12, 1, "axial"]


def choose(folder):
    chosen = choose_series(describe_series(*index_slices(folder, 1)))
    return dict(zip(chosen["SeriesInstanceUID"], chosen["reason"], strict=True))


def test_of_a_hospitals_study_the_plain_axial_series_of_5_mm_is_chosen(tmp_path):
    write_series(tmp_path, "1", plane=CORONAL, count=40)
    write_series(tmp_path, "2", ConvolutionKernel="BONE")
    write_series(tmp_path, "3", ContrastBolusAgent="IOHEXOL")
    write_series(tmp_path, "4", spacing=0.625, count=30)
    write_series(tmp_path, "5", spacing=4.5, count=13)
    write_series(tmp_path, "6", spacing=5.0, count=3)
    write_series(tmp_path, "7", BodyPartExamined="KNEE", count=20)
    reason = "axial, no contrast stated, no bone kernel stated, spacing 4.5 mm; best of 7 series"
    assert choose(tmp_path) == {"1.2.5": reason}


ORDERED = [  # each before the next
    {},
    {"spacing": 3.0},
    {"ConvolutionKernel": "BONE"},
    {"ContrastBolusAgent": "IOHEXOL"},
    {"stored": AIR + 800},
    {"count": 11},
    {"BodyPartExamined": "KNEE"},
]


@pytest.mark.parametrize("place", range(len(ORDERED) - 1))
def test_each_rule_goes_before_the_next(place, tmp_path):
    write_series(tmp_path, "1", **ORDERED[place + 1])
    write_series(tmp_path, "2", **ORDERED[place])
    assert list(choose(tmp_path)) == ["1.2.2"]


def test_what_the_only_series_lacks_is_said(tmp_path):
    write_series(tmp_path, "1", ConvolutionKernel="BONE", ContrastBolusAgent="IOHEXOL")
    reason = "axial, with contrast, bone kernel, spacing 5.0 mm; the only series"
    assert choose(tmp_path) == {"1.2.1": reason}


def test_a_study_without_an_axial_series_has_no_row(tmp_path):
    write_series(tmp_path, "2", plane=CORONAL, StudyInstanceUID="1.2.2")
    assert list(choose(tmp_path)) == []
    write_series(tmp_path, "1")
    assert list(choose(tmp_path)) == ["1.2.1"]


def test_scans_without_a_study_are_not_one_study(tmp_path):
    for name in "123":
        write_series(tmp_path, name, StudyInstanceUID=None, PatientID="ANON")
    write_series(tmp_path, "4", StudyInstanceUID=None, PatientID=None)
    reason = "axial, no contrast stated, no bone kernel stated, spacing 5.0 mm; the only series"
    assert choose(tmp_path) == {f"1.2.{name}": reason for name in "1234"}


def test_one_study_instance_uid_of_two_patients_is_two_studies(tmp_path):
    write_series(tmp_path, "1")
    write_series(tmp_path, "2", PatientID="P2")
    assert list(choose(tmp_path)) == ["1.2.1", "1.2.2"]


def test_a_reformat_that_calls_itself_axial_is_not_chosen(tmp_path):
    write_series(
        tmp_path, "1", plane=CORONAL, count=40, ImageType=["DERIVED", "SECONDARY", "AXIAL"]
    )
    write_series(tmp_path, "2", plane=CORONAL, count=40, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    write_series(tmp_path, "3", spacing=3.0)
    assert list(choose(tmp_path)) == ["1.2.3"]
    table = describe(tmp_path)
    assert table[["plane", "slices", "warnings"]].values.tolist() == [
        ["coronal", 40, "plane is not axial"],
        ["axial", 12, ""],
        ["coronal", 0, "plane is not axial"],
    ]
