"""A patient's head, drawn and scanned: series of slices in Hounsfield units with their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kit.phantom.anatomy import (
    AIR,
    EPIDURAL,
    INTRAPARENCHYMAL,
    INTRAVENTRICULAR,
    SUBARACHNOID,
    SUBDURAL,
    Bleeding,
    Head,
    Planes,
    draw_bleeding,
    draw_head,
    find_span,
    render_planes,
)
from kit.phantom.plan import MAIN_BLEEDING, SPACINGS, Patient

_SECOND_BLEEDING = {  # main → (second, its probability)
    EPIDURAL: (SUBARACHNOID, 0.3),
    INTRAPARENCHYMAL: (INTRAVENTRICULAR, 0.35),
    INTRAVENTRICULAR: (SUBARACHNOID, 0.3),
    SUBARACHNOID: (INTRAVENTRICULAR, 0.25),
    SUBDURAL: (SUBARACHNOID, 0.25),
}
_FAINT_BLEEDINGS = 0.15
# Mean number of mimics, each in one slice. A head without blood has more of them, and those of a
# bleeding head resemble its own bleeding: the series as a whole then says little, and only the
# order of its slices distinguishes a mimic from blood.
MIMICS_BESIDE_BLOOD, MIMICS_ALONE = 1.5, 4.2
_VISIBLE_AREA = 60.0  # mm² of blood above which a slice is labelled positive
_SUBPLANES = 4  # planes averaged over a slice's thickness, for partial volume


@dataclass(frozen=True)
class Series:
    """One series of T slices of `size` × `size` pixels, feet to head.

    `hounsfield` (T, size, size) int16; `labels` (T, 6) int8 in the order of `LABELS`; `positions`
    (T, 3) in mm, the center of each slice's first pixel; `tilt` in radians about the left-right
    axis; `pixel_spacing` in mm.
    """

    patient: Patient
    study: int
    slice_ids: tuple[str, ...]
    hounsfield: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    tilt: float
    pixel_spacing: float


def render_patient(patient: Patient, size: int) -> list[Series]:
    """Draw one patient's head and scan it once per study; the arguments determine the result."""
    rng = np.random.default_rng(np.random.SeedSequence(patient.seed, spawn_key=(patient.index,)))
    head = draw_head(rng)
    bleedings = _draw_bleedings(rng, head, patient.bleeding)
    series, used = [], 0
    for study in range(len(patient.study_ids)):
        scan = _scan_head(rng.spawn(1)[0], head, bleedings, patient.spacing, size)
        slice_ids = patient.slice_ids[used : used + len(scan[0])]
        series.append(Series(patient, study, slice_ids, *scan))
        used += len(slice_ids)
    return series


def _draw_bleedings(rng: np.random.Generator, head: Head, main: int | None) -> list[Bleeding]:
    if main is None:
        return []
    labels = [main]
    second, probability = _SECOND_BLEEDING[main]
    if rng.random() < probability:
        labels.append(second)
    faint = rng.random() < _FAINT_BLEEDINGS
    return [
        draw_bleeding(rng, head, label, rng.uniform(46, 54) if faint else rng.uniform(56, 78))
        for label in labels
    ]


def _draw_mimics(
    rng: np.random.Generator, head: Head, offsets: np.ndarray, bleedings: list[Bleeding]
) -> list[Bleeding]:
    """Draw mimics in one slice each (calcification, bone's partial volume), mostly of one kind."""
    usual = bleedings[0].label if bleedings else int(rng.choice(5, p=MAIN_BLEEDING))
    inside = np.flatnonzero((offsets > -0.5 * head.axes[3]) & (offsets < 0.8 * head.axes[2]))
    mimics = []
    for _ in range(rng.poisson(MIMICS_BESIDE_BLOOD if bleedings else MIMICS_ALONE)):
        label = usual if rng.random() < 0.75 else int(rng.choice(5, p=MAIN_BLEEDING))
        only = int(rng.choice(inside))
        mimic = draw_bleeding(rng, head, label, rng.uniform(52, 78), offsets[only])
        mimics.append(replace(mimic, only=only))
    return mimics


def _draw_offsets(rng: np.random.Generator, head: Head, spacing: str) -> np.ndarray:
    """Draw the heights of the slices in mm, (T,) with T from 20 to 60, feet to head."""
    top = head.axes[2] + head.skull + rng.uniform(0, 8)
    bottom = top - rng.uniform(125, 160)
    _, step = SPACINGS[spacing]
    steps = np.full(round((top - bottom) / step), step)
    if spacing == "variable":
        steps[-(len(steps) // 3) :] -= rng.uniform(0.5, 1.5)
    offsets = top - np.cumsum(steps)[::-1]
    return np.repeat(offsets, 2) if spacing == "paired" else offsets


def _scan_head(
    rng: np.random.Generator, head: Head, bleedings: list[Bleeding], spacing: str, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Scan a head once; returns the fields of `Series` that follow `slice_ids`."""
    offsets = _draw_offsets(rng, head, spacing)
    bleedings = bleedings + _draw_mimics(rng.spawn(1)[0], head, offsets, bleedings)
    pitch = rng.uniform(-0.15, 0.15)  # of the head in the image; independent of the gantry's tilt
    tilt = 0.0 if rng.random() < 0.1 else rng.uniform(-0.15, 0.4)
    pixel_spacing = float(rng.choice([0.3984375, 0.4296875, 0.44921875])) * 512 / size
    noise = rng.uniform(6, 10) * (size / 512) ** 0.43  # 2.5–4 HU at 64 pixels
    shift = rng.uniform(-4, 4, 2)
    table = rng.uniform(-50, 250)
    across = (np.arange(size) - (size - 1) / 2) * pixel_spacing
    x, v = across + shift[0], across + shift[1]
    wall = head.skull + head.scalp + 3
    cols = find_span(np.abs(x) < 1.14 * head.axes[0] + wall)  # outside this box there is only air
    rows = find_span(np.abs(v) < head.axes[1] + wall + 0.15 * 90)
    hounsfield = np.empty((len(offsets), size, size), np.int16)
    areas = np.zeros((len(offsets), 5))
    thickness = np.diff(offsets).max()
    subplanes = ((np.arange(_SUBPLANES) + 0.5) / _SUBPLANES - 0.5) * thickness
    for k, offset in enumerate(offsets):
        planes = _place_planes(x[cols], v[rows], offset + subplanes, pitch)
        here = [bleeding for bleeding in bleedings if bleeding.only in (None, k)]
        plane = np.full((size, size), AIR, np.float32)
        plane[rows, cols] = render_planes(head, here, planes, areas[k])
        plane += noise * rng.standard_normal(plane.shape, dtype=np.float32)
        hounsfield[k] = np.clip(np.rint(plane, out=plane), AIR - 20, 3000)
    labels = np.zeros((len(offsets), 6), np.int8)
    labels[:, :5] = areas * pixel_spacing**2 >= _VISIBLE_AREA
    labels[:, 5] = labels[:, :5].max(axis=1)
    corner = across[0] * np.array([1, np.cos(tilt), -np.sin(tilt)])
    normal = np.array([0, np.sin(tilt), np.cos(tilt)])
    positions = corner + offsets[:, None] * normal + (0, 0, table)
    return hounsfield, labels, positions, tilt, pixel_spacing


def _place_planes(x: np.ndarray, v: np.ndarray, w: np.ndarray, pitch: float) -> Planes:
    """Place planes at the heights `w` with rows at `v`, rotated by `pitch` about the x axis."""
    y = v * np.cos(pitch) + w[:, None] * np.sin(pitch)
    z = w[:, None] * np.cos(pitch) - v * np.sin(pitch)
    soft = max(float(x[1] - x[0]), 0.7)
    x, y, z = (axis.astype(np.float32) for axis in (x, y[..., None], z[..., None]))
    return Planes(x, y, z, soft)
