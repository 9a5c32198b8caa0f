"""Scanned heads: their slices, tilts, bleedings and mimics."""

import numpy as np
import pytest

from kit.competition import LABELS
from kit.phantom import scan
from kit.phantom.plan import plan_patients
from kit.phantom.scan import render_patient

SIZE = 48


@pytest.fixture(scope="module")
def rendered() -> list[scan.Series]:
    return [s for patient in plan_patients(60, seed=2) for s in render_patient(patient, SIZE)]


def test_series_have_20_to_60_slices_about_30_at_5_mm(rendered):
    counts = np.array([len(series.labels) for series in rendered])
    assert counts.min() >= 20
    assert counts.max() <= 60
    assert 26 <= np.median(counts) <= 34
    assert (counts > 45).sum() >= 3


def test_nine_in_ten_series_are_tilted(rendered):
    tilts = np.array([series.tilt for series in rendered])
    assert 0.8 < (tilts != 0).mean() < 1
    assert np.abs(tilts).max() < 0.41


def test_bleedings_are_50_to_78_hounsfield_units_and_shown_in_neighbouring_slices(rendered):
    brightest, lone, runs = [], 0, 0
    for series in rendered:
        label = series.patient.bleeding
        if label is None:
            assert not series.labels.any()
            continue
        edges = np.flatnonzero(np.diff(np.r_[0, series.labels[:, label], 0]))
        runs += len(edges) // 2
        lone += (np.diff(edges)[::2] == 1).sum()
        if label == 1 and series.labels[:, label].any():
            at = edges[:2].sum() // 2
            middle = series.hounsfield[at, 9:-9, 9:-9].astype(float)
            means = _box_means(middle)
            brightest.append(means[means < 90].max())
    assert 44 < min(brightest) < max(brightest) < 90
    assert lone < 0.1 * runs


def test_mimics_are_blood_in_one_slice_alone_and_are_not_labelled(monkeypatch):
    patients = [patient for patient in plan_patients(30, seed=3) if patient.bleeding is None]
    shown = [render_patient(patient, SIZE)[0] for patient in patients]
    monkeypatch.setattr(scan, "MIMICS_ALONE", 0.0)
    bare = [render_patient(patient, SIZE)[0] for patient in patients]
    differing = 0
    for with_mimics, without in zip(shown, bare, strict=True):
        difference = with_mimics.hounsfield.astype(int) - without.hounsfield
        at = np.flatnonzero((difference > 12).sum(axis=(1, 2)))
        differing += len(at)
        assert len(at) <= 12
        assert not with_mimics.labels.any()
    assert 2 < differing / len(patients) < 5  # 4.2 on average, a few on one slice or unseen


def test_prevalence_is_near_the_real_one(rendered):
    bleeding = np.mean([p.bleeding is not None for p in plan_patients(60, seed=2)])
    assert bleeding == pytest.approx(0.55, abs=0.02)
    share = np.concatenate([series.labels for series in rendered]).mean(axis=0)
    share = dict(zip(LABELS, share, strict=True))
    assert 0.10 < share["any"] < 0.25
    assert 0 < share["epidural"] < min(share[label] for label in LABELS[1:])
    for label in LABELS[1:5]:
        assert 0.015 < share[label] < 0.12


def _box_means(image: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(image, (3, 3)).mean(axis=(2, 3))
