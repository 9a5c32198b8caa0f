"""What each patient of the synthetic competition has, decided before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Shares of patients, not of slices: epidural is more frequent than in the real data (3 % of the
# bleeding slices), so that a small phantom has all five types.
_BLEEDING_PATIENTS = 0.55
MAIN_BLEEDING = (0.06, 0.34, 0.08, 0.24, 0.28)
# How a series' slices are spaced: upper end of its share of the patients, step in mm.
SPACINGS = {"paired": (0.05, 5.5), "thin": (0.1, 2.7), "variable": (0.45, 5.0), "even": (1.0, 5.0)}
_TWO_STUDIES = 0.06
_MOST_SLICES = 60


@dataclass(frozen=True)
class Encoding:
    """How the slices of a series are stored; all forms occur in the competition's files."""

    bits_stored: int
    signed: bool
    intercept: int
    implicit: bool
    window: tuple[str | list[str], str | list[str]]


ENCODINGS = (
    Encoding(16, True, -1024, False, ("30", "80")),
    Encoding(12, False, -1024, False, (["00036", "00036"], ["00080", "00080"])),
    Encoding(16, True, -1024, True, ("35.000000", "135.000000")),
    Encoding(12, False, -1000, True, ("40", "150")),
    Encoding(16, True, -1000, False, ("30", "80")),
)


@dataclass(frozen=True)
class Patient:
    """What is decided about one patient; `bleeding` indexes `LABELS`, None without any."""

    index: int
    seed: int
    patient_id: str
    study_ids: tuple[str, ...]
    series_ids: tuple[str, ...]
    slice_ids: tuple[str, ...]
    test: bool
    bleeding: int | None
    spacing: str
    encoding: Encoding
    truncated: bool
    wrong_intercept: bool


def plan_patients(patients: int, seed: int) -> list[Patient]:
    """Assign ids, parts, bleedings, spacings, encodings and defects to `patients` patients.

    Traits have fixed shares and are not drawn independently, so that small phantoms show all of
    them. One file of each part is truncated and one training file has a wrong rescale intercept.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    parts, bleeds, spacings, studies = (_spread_evenly(rng, patients) for _ in range(4))
    slice_ids = _draw_ids(rng, patients * 2 * _MOST_SLICES, 9)
    patient_ids, series_ids = _draw_ids(rng, patients, 8), _draw_ids(rng, patients * 4, 10)
    kinds = np.cumsum(MAIN_BLEEDING) * _BLEEDING_PATIENTS
    test = parts < max(1, round(patients / 6)) / patients
    wrong = np.flatnonzero(~test)[1]
    plan = []
    for i in range(patients):
        count = 2 if studies[i] < _TWO_STUDIES else 1
        plan.append(
            Patient(
                index=i,
                seed=seed,
                patient_id=patient_ids[i],
                study_ids=series_ids[4 * i : 4 * i + count],
                series_ids=series_ids[4 * i + 2 : 4 * i + 2 + count],
                slice_ids=slice_ids[2 * _MOST_SLICES * i : 2 * _MOST_SLICES * (i + 1)],
                test=bool(test[i]),
                bleeding=int(np.searchsorted(kinds, bleeds[i])) if bleeds[i] < kinds[-1] else None,
                spacing=next(name for name, (end, _) in SPACINGS.items() if spacings[i] < end),
                encoding=ENCODINGS[3 if i == wrong else i % len(ENCODINGS)],
                truncated=i in (np.argmin(test), np.argmax(test)),  # the first of each part
                wrong_intercept=bool(i == wrong),
            )
        )
    return plan


def _spread_evenly(rng: np.random.Generator, patients: int) -> np.ndarray:
    """A number in (0, 1) for each patient: evenly spread, in random order."""
    return (rng.permutation(patients) + 0.5) / patients


def _draw_ids(rng: np.random.Generator, count: int, digits: int) -> tuple[str, ...]:
    numbers = dict.fromkeys(rng.integers(16**digits, size=count + 16).tolist())
    return tuple(f"ID_{number:0{digits}x}" for number in list(numbers)[:count])
