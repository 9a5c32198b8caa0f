from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from evaluation_files import make_cases
from PIL import Image

from kit.evaluation.figures import FIGURES, draw_figures, measure_benefit, trace_band
from kit.evaluation.settings import Settings, list_findings

NAMES = [name for name in matplotlib.rcParams if "backend" not in name]  # found when asked for
SETTINGS = Settings(points={"0.5": {"any": 0.5}}, temperatures={"any": 2.0})


def test_four_figures_are_drawn_as_svg_and_png_and_leave_matplotlib_as_it_was(tmp_path):
    before = {name: matplotlib.rcParams[name] for name in NAMES}
    cases = make_cases(tmp_path, 40)
    cases = replace(cases, labels=np.where(np.arange(6) == 1, 0, cases.labels))  # one class
    paths = draw_figures(list_findings(cases, SETTINGS)[:3], SETTINGS, tmp_path)
    assert [path.name for path in paths] == [
        f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")
    ]
    assert {name: matplotlib.rcParams[name] for name in NAMES} == before
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths[::2]}
    assert "sensitivity" in texts["roc"]
    assert "one class only" in texts["roc"]
    assert "after temperature" in texts["reliability"]
    assert "treat all" in texts["decision"]
    for path in paths[1::2]:
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(image.convert("L").getcolors()) > 20


def test_a_figure_is_drawn_to_the_same_bytes(tmp_path):
    findings = list_findings(make_cases(tmp_path, 40), SETTINGS)[:1]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_figures(findings, SETTINGS, tmp_path / name)
    assert (tmp_path / "a" / "roc.svg").read_bytes() == (tmp_path / "b" / "roc.svg").read_bytes()


def test_the_band_encloses_the_curve_and_narrows_with_patients(tmp_path):
    widths = []
    for patients in (40, 400):
        low, high = trace_band(list_findings(make_cases(tmp_path, patients), SETTINGS)[1], SETTINGS)
        assert (low <= high).all()
        assert (np.diff(low) >= 0).all()
        assert high[-1] == 1
        widths.append((high - low).mean())
    assert widths[1] < 0.5 * widths[0]


def test_net_benefit_by_hand():
    labels, probabilities = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.1, 0.8, 0.2, 0.1])
    # At a risk of 0.2: one true and two false positives of five, each of these worth 1/4.
    assert measure_benefit(labels, probabilities, 0.2) == pytest.approx((1 - 2 / 4) / 5)
