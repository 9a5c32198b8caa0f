"""The slice table → a row a series, with what is unusual about it, and the series of each study."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pandas as pd

from kit.dicom import DicomError, read_hounsfield
from kit.dicom.checks import LEAST_AIR
from kit.dicom.parsing import parse_numbers
from kit.slices.entries import NOT_AXIAL
from kit.slices.order import SERIES_KEY

# Of 79 whole series of the competition, those picked for rare defects among them, all have 24 to 56
# slices and a spacing of 2.5 to 6.0 mm, 5.0 for nine in ten; of 2,214, 20 to 60 slices, median 34.
_LEAST_SLICES, _MOST_SLICES = 12, 80
LEAST_SPACING, _MOST_SPACING = 2.0, 10.0  # mm
USUAL_SPACING = 5.0  # mm

_COLUMNS = [
    *SERIES_KEY, "StudyDescription", "SeriesDescription", "plane", "ConvolutionKernel",
    "SliceThickness", "spacing", "ContrastBolusAgent", "BodyPartExamined", "slices", "left_out",
    "warnings", "series",
]  # fmt: skip

# How ContrastBolusAgent says that none was given: of others it is the name, or how it was given.
_NO_AGENT = re.compile(
    r"|[-.0]+ ?(ML|CC)?|N|N/?A|NIL|NULL|FALSE|UNKNOWN|UNDEFINED"
    r"|(NO|NON(?!\W?IONIC)|NONE|W/?O|WITHOUT|OHNE|SANS|SENZA|SIN|PLAIN|NATIVE?|UNENHANCED)\b.*"
)

# How SeriesDescription says that there is contrast, or none, or both in turn.
_WITHOUT = re.compile(
    r"\b(W/?O|WITHOUT|NONE?|NO|OHNE|SANS|SENZA|SIN|PLAIN|NATIVE?|UNENHANCED|PRE|NCCT|NECT|NCE?)\b"
    r"|\bC-(?!\w)"
)
_WITH = re.compile(
    r"\b(CONTRASTE?|CONTR|KONTRAST|KM|MDC|INJ(?!UR)\w*|IV|CE|CECT|CTA|CTV|CTP|VPCT|PERF\w*|DYN\w*|ANGIO\w*"
    r"|BOLUS|MONITORING|ENHANCED|ARTERIAL|VENOUS|DELAYED"
    r"|POST(?!\W?(OP|FOSSA|TRAUM|SURG|INTERV|CRANI|MORT|TREAT|THROMB|LYSIS|COIL|EV[DT]|TX)))\b"
    r"|\bC\+|\+ ?C\b|\bW$"
)
_BOTH = re.compile(r"\b(W|WITH)\W*(AND )?(W/?O|WITHOUT)\b")

# Kernels for bone and lung by the makers' names: words (GE and in descriptions), numbers from 50 on
# (Siemens, as H60s, Br64d), FC30 to 39, 50 to 59 and 80 to 89 (Canon), letters (Philips).
_SHARP_WORDS = re.compile(r"BONE|EDGE|SHARP|LUNG|ULTRA")
_SHARP_KERNELS = re.compile(r"(?!FC)[A-Z]{1,2}[5-9]\d[A-Z]{0,2}|FC[358]\d(-\w+)?|Y?[DE]|L|YC")
_SHARP_DESCRIPTION = re.compile(
    r"(?<!\bNO )\bBONE(?!\W?(REM|SUB|LESS|FREE))|\b(KNOCHEN|OSS(EUX|EUSE|O)\b|HUESO)"
    r"|\b([HBIJ][A-Z]?[5-9]\d[A-Z]|[BH]R[5-9]\d)\b"
)

_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|[CK]RAN|NEURO|CEREBR|ENCEPH|HIRN|KOPF|SCHAE?DEL|TETE|TESTA|CABE[CZ]A|HOOFD"
    r"|STROKE"
)
_OTHERS = re.compile(
    r"\b(KNEE|CHEST|THORA|ABDOM|PELVI|[CTL]?SPINE|CERVICAL|[HBL]WS\b|NECK|HALS\b|SINUS|ORBIT|FACIAL"
    r"|LUNG|LIVER|HIPS?\b|FOOT|ANKLE|HANDS?\b|WRIST|ELBOW|SHOULDER|LEGS?\b|ARMS?\b|HEART|CARDIAC"
    r"|COLON|KIDNEY|EXTREMITY)"
)
_NO_PART = {"", "UNDEFINED", "UNKNOWN", "OTHER", "NONE"}


def describe_series(slices: pd.DataFrame, skipped: pd.DataFrame) -> pd.DataFrame:
    """Describe each series in one row: those of the slice table, then those left out as a whole.

    The tables are those of `index_slices`. The columns are DICOM keywords and `plane` (axial,
    coronal, sagittal), `spacing` (the median step in mm, NaN where there is none), `slices`,
    `left_out` (how many slices were skipped whose header could be read), `warnings` (fixed phrases
    joined by semicolons, or none) and `series`, its name. Reads the pixels of one slice a series.
    """
    out = skipped[skipped["series"].notna() & ~skipped["series"].isin(slices["series"])]
    left_out = skipped["series"].value_counts()
    rows = [
        _describe(part, left_out.get(name, 0), usable)
        for table, usable in ((slices, True), (out, False))
        for name, part in table.groupby("series", sort=False)
    ]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    texts = table.columns.difference(["SliceThickness", "spacing", "slices", "left_out"])
    table[texts] = table[texts].astype(object).where(table[texts].notna(), None)
    return table


def choose_series(table: pd.DataFrame) -> pd.DataFrame:
    """Choose the series that stands for each study: a row a study, from `describe_series`.

    Of the axial series, those first that are so by their orientation too; then, in this order: of
    the head, of 12 slices or more, with air and of one acquisition, without contrast, of a soft
    kernel, of the spacing nearest 5 mm, of the most slices, of the lowest UID. The columns are
    those of `table`, `series_count` (how many the study has) and `reason`, in words. A study
    without a usable series has no row.
    """
    study = name_studies(table)
    counts = table.groupby(study)["series"].transform("size")
    usable = table.assign(series_count=counts)[table["slices"] > 0]
    warned = usable["warnings"]
    order = pd.DataFrame(
        {
            "plane": usable["plane"] != "axial",
            "body": warned.str.contains(_BODY),
            "few": usable["slices"] < _LEAST_SLICES,
            "doubtful": warned.str.contains(f"{_NO_AIR}|{_TWICE}"),
            "contrast": warned.str.contains(_CONTRAST),
            "bone": warned.str.contains(_BONE),
            "spacing": (usable["spacing"].astype(float) - USUAL_SPACING).abs().round(2),
            "slices": -usable["slices"],
            "uid": usable["SeriesInstanceUID"].astype(str),
        }
    )
    order = order.sort_values(list(order), na_position="last")
    first = order.index[~study[order.index].duplicated()]
    chosen = usable.loc[first].sort_index().reset_index(drop=True)
    return chosen.assign(reason=[_explain(row) for row in chosen.to_dict("records")])


def name_studies(table: pd.DataFrame) -> pd.Series:
    """Name the study of each row; one without StudyInstanceUID has a series alone.

    Nothing says then which series belong together: all scans of a folder may lack it.
    """
    study = table["StudyInstanceUID"].fillna(table["SeriesInstanceUID"])
    return table["PatientID"].fillna("") + "/" + study


_CONTRAST, _BONE, _BODY = "contrast", "bone kernel", "other body part"
_NO_AIR = f"no air below {LEAST_AIR} HU"
_TWICE = "two acquisitions at the same places"


def _explain(row: dict) -> str:
    """Why a series was chosen: what it is by each rule, and out of how many."""
    warned = row["warnings"]
    words = [
        row["plane"],
        "with contrast" if _CONTRAST in warned else "no contrast stated",
        _BONE if _BONE in warned else "no bone kernel stated",
        "one slice" if np.isnan(row["spacing"]) else f"spacing {row['spacing']:.1f} mm",
        *(phrase for phrase in (_BODY, _NO_AIR, _TWICE) if phrase in warned),
    ]
    count = row["series_count"]
    return f"{', '.join(words)}; {'the only series' if count == 1 else f'best of {count} series'}"


def _describe(part: pd.DataFrame, left_out: int, usable: bool) -> dict:
    """A row of `describe_series` for the slices of one series, in order."""
    steps = np.diff(np.unique(part["position"].to_numpy(np.float64).round(2)))
    placed = len(steps) and part["ImagePositionPatient"].notna().all()
    told = [*_COLUMNS, "ImageOrientationPatient"]
    first = {name: _find_first(part[name]) for name in told if name in part}
    thickness = first["SliceThickness"]
    row = {
        **first,
        "SliceThickness": np.nan if thickness is None else float(thickness),
        "plane": _name_plane(first.get("ImageOrientationPatient")) or ("axial" if usable else None),
        "spacing": float(np.median(steps).round(2)) if placed else np.nan,
        "slices": len(part) if usable else 0,
        "left_out": int(left_out),
    }
    return {**row, "warnings": "; ".join(_list_warnings(part, row))}


def _name_plane(orientation: str | None) -> str | None:
    numbers = parse_numbers(orientation or "")
    if numbers is None:
        return None
    normal = np.abs(np.cross(numbers[:3], numbers[3:]))
    if not normal.any():
        return None
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def _find_first(values: pd.Series):
    known = values.dropna()
    return known.iloc[0] if len(known) else None


def _list_warnings(part: pd.DataFrame, row: dict) -> list[str]:
    """What is unusual about a series for a model of non-contrast head CT, in fixed phrases."""
    if not row["slices"]:
        return [NOT_AXIAL if (part["code"] == NOT_AXIAL).any() else "no usable slice"]
    spacing, slices = row["spacing"], row["slices"]
    notes = part["note"].fillna("")
    found = {
        NOT_AXIAL: row["plane"] != "axial",
        _CONTRAST: _has_contrast(row["ContrastBolusAgent"], row["SeriesDescription"]),
        _BONE: _is_sharp(row["ConvolutionKernel"], row["SeriesDescription"]),
        _BODY: _is_elsewhere(row["BodyPartExamined"], row["SeriesDescription"]),
        f"fewer than {_LEAST_SLICES} slices": slices < _LEAST_SLICES,
        f"more than {_MOST_SLICES} slices": slices > _MOST_SLICES,
        f"spacing outside {LEAST_SPACING:g} to {_MOST_SPACING:g} mm": not np.isnan(spacing)
        and not LEAST_SPACING <= spacing <= _MOST_SPACING,
        _NO_AIR: _lacks_air(part.get("source", part["path"]).iloc[len(part) // 2]),
        _TWICE: 2 * notes.str.contains("at the same place").sum() > slices,
    }
    return [warning for warning, holds in found.items() if holds]


def _has_contrast(agent: str | None, description: str | None) -> bool:
    words = _spell(description)
    said = _WITH.search(words) and not _WITHOUT.search(words)
    return bool(not _NO_AGENT.fullmatch(_spell(agent)) or said or _BOTH.search(words))


def _is_sharp(kernel: str | None, description: str | None) -> bool:
    name = _spell(kernel).split("\\")[0].strip()
    if _SHARP_KERNELS.fullmatch(name) or _SHARP_WORDS.search(name):
        return True
    return bool(_SHARP_DESCRIPTION.search(_spell(description)))


def _is_elsewhere(part: str | None, description: str | None) -> bool:
    """Whether the header names a body part, and no head; a scanner's protocol may give the part."""
    body, words = _spell(part), _spell(description)
    if _HEAD.search(words):
        return False
    return bool(_OTHERS.search(words)) or (body not in _NO_PART and not _HEAD.search(body))


def _spell(text: str | None) -> str:
    """A text in capitals without accents, its words apart."""
    apart = unicodedata.normalize("NFKD", text or "")
    plain = "".join(letter for letter in apart if not unicodedata.combining(letter))
    return plain.upper().replace("_", " ").strip()


def _lacks_air(source: str | np.ndarray) -> bool:
    try:
        values = read_hounsfield(source) if isinstance(source, str) else source
        return bool(values.min() >= LEAST_AIR)
    except DicomError:
        return False  # it gets its reason where all slices are read
