"""A synthetic head: skull, brain, ventricles and bleedings in their anatomical places.

Neither anatomy for teaching nor a medical device: simple surfaces in millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EPIDURAL, INTRAPARENCHYMAL, INTRAVENTRICULAR, SUBARACHNOID, SUBDURAL = range(5)

AIR, SOFT_TISSUE, BONE, DIPLOE = -1000.0, 25.0, 1250.0, 650.0
CSF, GRAY, WHITE, FALX = 7.0, 37.0, 29.0, 45.0

# Landmarks: center x, y, z and half axes in mm (from the head's center: x left, y back, z up),
# outward drift of x with y, HU. Those off the midline occur on both sides.
_DEEP_GRAY = ((13, 6, -2, 8, 12, 8, 0.0, 38), (24, -6, 0, 6, 15, 9, 0.1, 38))
_VENTRICLES = (
    (9, -18, 8, 5, 20, 11, -0.25, CSF),
    (11, 8, 14, 5, 18, 7, 0.15, CSF),
    (21, 30, 3, 6, 15, 10, 0.1, CSF),
    (0, -2, -6, 2.5, 12, 9, 0.0, CSF),
    (0, 40, -40, 7, 6, 9, 0.0, CSF),
)
_CISTERNS = (
    (0, -12, -32, 14, 9, 7, 0.0, CSF),
    (13, 14, -27, 5, 13, 6, -0.4, CSF),
    (36, -12, -27, 17, 5, 6, 0.0, CSF),
)
_SKULL_BASE = (
    (38, 14, -52, 26, 9, 9, 0.0, 1100),
    (20, -22, -50, 24, 5, 6, 0.0, 900),
    (0, -6, -58, 9, 14, 9, 0.0, 900),
    (0, 8, -74, 14, 30, 9, 0.0, 700),
)
_FACE = (
    (28, -62, -60, 16, 20, 15, 0.0, -60),
    (29, -72, -60, 11, 11, 11, 0.0, 12),
    (0, -60, -60, 9, 20, 14, 0.0, -850),
    (26, -55, -90, 13, 16, 14, 0.0, -900),
    (56, 30, -62, 7, 8, 8, 0.0, -700),
)


@dataclass(frozen=True)
class Head:
    """The sizes of one head in mm; `phases` (4, 2) shape its sulci."""

    axes: tuple[float, float, float, float]  # half width, half length, up, down: inside the skull
    skull: float
    scalp: float
    sulci: float
    ventricles: float
    phases: np.ndarray
    brain_offset: float


@dataclass(frozen=True)
class Bleeding:
    """One bleeding or, if `only` is a slice number, a mimic of blood that only that slice shows."""

    label: int
    hounsfield: float
    center: np.ndarray
    radii: np.ndarray
    only: int | None = None


@dataclass(frozen=True)
class Planes:
    """Where pixels lie, in mm from the head's center: x (cols,), y and z (planes, rows, 1).

    Scans are tilted about the left-right axis only, so that most sums broadcast.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    soft: float  # width of a smooth edge in mm

    def above(self, depth: np.ndarray) -> np.ndarray:
        """The share of each pixel in which `depth` (mm) is positive."""
        cover = depth * (1 / self.soft) + 0.5
        return np.clip(cover, 0, 1, out=cover)


def draw_head(rng: np.random.Generator) -> Head:
    return Head(
        axes=(rng.uniform(61, 69), rng.uniform(74, 83), rng.uniform(68, 80), rng.uniform(66, 78)),
        skull=rng.uniform(5.5, 8.5),
        scalp=rng.uniform(3.5, 6.5),
        sulci=rng.uniform(0.5, 2.0),
        ventricles=rng.uniform(0.8, 1.45),
        phases=rng.uniform(0, 2 * np.pi, (4, 2)).astype(np.float32),
        brain_offset=rng.uniform(-1.5, 1.5),
    )


def draw_bleeding(
    rng: np.random.Generator, head: Head, label: int, hounsfield: float, z: float | None = None
) -> Bleeding:
    """Draw one bleeding in a place typical of its kind, at the height `z` (mm) if given."""
    a, b, up, down = head.axes
    side, azimuth = rng.choice([-1.0, 1.0]), rng.uniform(-1.1, 1.1)
    z = rng.uniform(-0.4 * down, 0.75 * up) if z is None else z
    ring = np.sqrt(1 - (z / (up if z > 0 else down)) ** 2)
    surface = np.array([side * a * np.cos(azimuth) * ring, b * np.sin(azimuth) * ring, z])
    depth = rng.uniform(0.2, 0.7)
    cistern = rng.random() < 0.4
    center: np.ndarray
    radii: np.ndarray
    if label == EPIDURAL:
        center, radii = surface, np.array([rng.uniform(10, 22), rng.uniform(22, 36), 0])
    elif label == SUBDURAL:
        center, radii = surface, np.array([rng.uniform(5, 12), rng.uniform(26, 48), 0])
    elif label == SUBARACHNOID:
        center = np.array([0.0, -10.0, -30.0]) if cistern else surface
        radii = np.full(3, rng.uniform(18, 31))
    elif label == INTRAVENTRICULAR:
        height = np.clip(z, -20, 20)
        center = np.array([side * (rng.random() < 0.5), rng.uniform(-25, 15), height])
        radii = np.full(3, rng.uniform(12, 26))
    else:
        center = surface * (depth, depth, 0.8)
        radii = rng.uniform(8, 19) * rng.uniform(0.8, 1.25, 3)
    return Bleeding(label, hounsfield, center.astype(np.float32), radii.astype(np.float32))


def render_planes(
    head: Head, bleedings: list[Bleeding], planes: Planes, areas: np.ndarray
) -> np.ndarray:
    """Hounsfield units (rows, cols), float32 and without noise: the mean of the planes.

    Adds to `areas` (5,) the number of pixels that each kind of bleeding covers, mimics excluded.
    """
    depth, below_skin = _measure_depths(head, planes)
    folds = _draw_folds(head, planes)
    inside = planes.above(depth)
    sulci = planes.above(head.sulci - 3 * np.abs(folds)) * (1 - planes.above(depth - 14))
    brain = planes.above(depth - head.sulci) * (1 - sulci)
    hounsfield = AIR + planes.above(below_skin) * (SOFT_TISSUE - AIR)
    _paint(hounsfield, _FACE, planes)
    for outer, inner, value in ((1, 0, BONE), (2 / 3, 1 / 3, DIPLOE)):
        shell = planes.above(depth + outer * head.skull) - planes.above(depth + inner * head.skull)
        _blend(hounsfield, shell, value)
    _blend(hounsfield, inside, CSF)
    _blend(hounsfield, brain, GRAY + head.brain_offset)
    white = planes.above(depth - head.sulci - 5 + 4 * np.abs(folds)) * brain
    _blend(hounsfield, white, WHITE + head.brain_offset)
    _paint(hounsfield, _DEEP_GRAY + _CISTERNS, planes)
    _paint(hounsfield, _VENTRICLES, planes, head.ventricles)
    falx = planes.above(1.0 - np.abs(planes.x)) * (planes.z > 12)
    _blend(hounsfield, falx * inside, FALX)
    _paint(hounsfield, _SKULL_BASE, planes)
    for bleeding in bleedings:
        if _reaches(bleeding, planes):
            cover = inside * _cover_bleeding(bleeding, head, planes, depth, sulci, folds)
            _blend(hounsfield, cover, bleeding.hounsfield)
            if bleeding.only is None:
                areas[bleeding.label] += cover.sum() / len(cover)
    return hounsfield.mean(axis=0)


def _reaches(bleeding: Bleeding, planes: Planes) -> bool:
    z, reach = bleeding.center[2], bleeding.radii.max()
    return planes.z.min() <= z + reach and planes.z.max() >= z - reach


def _cover_bleeding(
    bleeding: Bleeding,
    head: Head,
    planes: Planes,
    depth: np.ndarray,
    sulci: np.ndarray,
    folds: np.ndarray,
) -> np.ndarray:
    """The share of each pixel (planes, rows, cols) that the bleeding fills, ignoring the skull."""
    x, y, z = (p - c for p, c in zip((planes.x, planes.y, planes.z), bleeding.center, strict=True))
    square = x * x + (y * y + z * z)
    own_side = planes.above(planes.x * np.sign(bleeding.center[0]) + 1)
    if bleeding.label in (EPIDURAL, SUBDURAL):
        thickness, radius, _ = bleeding.radii
        steep = 1 if bleeding.label == EPIDURAL else 2  # lens, crescent
        return planes.above(thickness * (1 - (square / radius**2) ** steep) - depth) * own_side
    if bleeding.label == SUBARACHNOID:
        spaces = np.maximum(1 - planes.above(depth - head.sulci - 3), sulci)
        _paint(spaces, [(*landmark[:7], 1.0) for landmark in _CISTERNS], planes)
        return spaces * planes.above(bleeding.radii[0] - np.sqrt(square))
    if bleeding.label == INTRAVENTRICULAR:
        spaces = np.zeros_like(depth)
        _paint(spaces, [(*landmark[:7], 1.0) for landmark in _VENTRICLES], planes, head.ventricles)
        # Blood settles: the patient lies on the back, and the ventricle is filled to a level.
        return spaces * own_side * planes.above(y) * planes.above(bleeding.radii[2] - np.abs(z))
    ax, ay, az = bleeding.radii
    root = np.sqrt((x / ax) ** 2 + ((y / ay) ** 2 + (z / az) ** 2))
    return planes.above((1 - root) * min(ax, ay, az) + 2 * folds) * planes.above(depth - 3)


def _blend(hounsfield: np.ndarray, cover: np.ndarray, value: float) -> None:
    hounsfield += cover * (value - hounsfield)


def _measure_depths(head: Head, planes: Planes) -> tuple[np.ndarray, np.ndarray]:
    """Depth in mm below the skull's inner surface and below the skin, to first order."""
    a, b, up, down = head.axes
    square, y, z = planes.x**2, planes.y, planes.z
    across = a * (1 + 0.12 * y / b)  # heads are wider at the back
    c = np.where(z > 0, np.float32(up), np.float32(down))
    root = np.sqrt(square / across**2 + ((y / b) ** 2 + (z / c) ** 2))
    slope = np.sqrt(square / across**4 + (y**2 / b**4 + z**2 / c**4 + 1e-9))
    depth = (1 - root) * root / slope
    wall = head.skull + head.scalp
    c = np.where(z > 0, np.float32(up + wall), np.float32(170))  # face and neck continue below
    root = np.sqrt(square / (across + wall) ** 2 + ((y / (b + wall)) ** 2 + (z / c) ** 2))
    return depth, (1 - root) * (b + wall)


def _draw_folds(head: Head, planes: Planes) -> np.ndarray:
    """A smooth field with values of about 1 whose zeros wind like sulci."""
    waves = ((0.31, 0.19, 0.15), (0.17, 0.33, 0.10), (0.39, 0.14, 0.20), (0.23, 0.28, 0.24))
    products = [
        np.sin(a * planes.x + p) * np.sin(b * planes.y + c * planes.z + q)
        for (a, b, c), (p, q) in zip(waves, head.phases, strict=True)
    ]
    return sum(products, start=np.zeros(1, np.float32))


def _paint(hounsfield: np.ndarray, landmarks, planes: Planes, scale: float = 1.0) -> None:
    """Blend ellipsoids into `hounsfield` (planes, rows, cols), each within its bounding box."""
    for x0, y0, z0, ax, ay, az, drift, value in landmarks:
        ax, ay, az = ax * scale, ay * scale, az * scale
        if planes.z.min() > z0 + az or planes.z.max() < z0 - az:
            continue
        rows = find_span(np.abs(planes.y[:, :, 0] - y0).min(axis=0) < ay + planes.soft)
        y, z = planes.y[:, rows] - y0, planes.z[:, rows] - z0
        for side in (-1, 1) if x0 else (1,):
            width = ax + abs(drift) * ay + planes.soft
            cols = find_span(np.abs(planes.x - side * x0) < width)
            x = planes.x[cols] - side * (x0 + drift * y)
            root = np.sqrt((x / ax) ** 2 + ((y / ay) ** 2 + (z / az) ** 2))
            _blend(hounsfield[:, rows, cols], planes.above((1 - root) * min(ax, ay, az)), value)


def find_span(wanted: np.ndarray) -> slice:
    places = np.flatnonzero(wanted)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)
