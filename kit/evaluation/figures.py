"""The figures of an evaluation: ROC, precision–recall, reliability, decision curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kit.evaluation.calibration import apply_temperature
from kit.evaluation.curves import measure_reliability, trace_curves
from kit.evaluation.inputs import WHOLE
from kit.evaluation.rates import count_cells
from kit.evaluation.resampling import draw_patients, trace_weighted
from kit.evaluation.settings import OPTIMISTIC, Finding, Settings
from kit.files import replace_file

_COLORS = ("#0072b2", "#d55e00", "#00795a", "#a5427c", "#7a6a00")
_GUIDE = {"color": "#8a8f96", "linewidth": 1, "linestyle": (0, (2, 3))}
_BAND_RESAMPLES = 200
_GRID = np.linspace(0, 1, 101)
_RISKS = np.linspace(0.01, 0.99, 99)  # threshold probabilities of a decision curve
FIGURES = {
    "roc": "ROC curves",
    "precision_recall": "Precision–recall curves",
    "reliability": "Reliability",
    "decision": "Decision curves",
}


def draw_figures(findings: list[Finding], settings: Settings, folder: Path) -> list[Path]:
    """Draw the four figures, a panel a finding, as `{name}.svg` and `{name}.png` in `folder`."""
    draw: dict[str, Callable[[Any, Finding, Settings], None]] = {
        "roc": _draw_roc,
        "precision_recall": _draw_precision_recall,
        "reliability": _draw_reliability,
        "decision": _draw_decision,
    }
    return [
        path for name in FIGURES for path in _draw(findings, settings, folder / name, draw[name])
    ]


def trace_band(finding: Finding, settings: Settings) -> np.ndarray:
    """Trace the pointwise 95 % band of the true positive rate, (2, 101), over patients.

    At false positive rates from 0 to 1 in hundredths. NaN where no resample has both classes.
    """
    order = np.argsort(finding.models[WHOLE], kind="stable")
    labels, values = finding.labels[order], finding.models[WHOLE][order]
    rates = []
    for weights in draw_patients(finding.cases.patients, _BAND_RESAMPLES, settings.seed):
        weights = weights[:, order]
        true, false = trace_weighted(weights * labels, weights * (1 - labels), values)
        for hits, alarms in zip(true, false, strict=True):
            if hits[-1] and alarms[-1]:
                places = np.searchsorted(alarms / alarms[-1], _GRID, side="right") - 1
                rates.append(hits[places] / hits[-1])
    if not rates:
        return np.full((2, len(_GRID)), np.nan)
    return np.percentile(rates, [2.5, 97.5], axis=0)


def measure_benefit(labels: np.ndarray, probabilities: np.ndarray, risk: float) -> float:
    """Measure the net benefit at a threshold probability (Vickers and Elkin, 2006)."""
    counts = count_cells(labels, probabilities, risk)
    return (counts.tp - counts.fp * risk / (1 - risk)) / len(labels)


def _draw(findings: list[Finding], settings: Settings, stem: Path, draw: Callable) -> list[Path]:
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, which keeps state

    columns = min(3, len(findings))
    rows = -(-len(findings) // columns)
    paths = []
    with matplotlib.rc_context({"svg.hashsalt": "kit", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.3 * columns, 3.3 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, finding in zip(panels, findings, strict=False):
            panel.set_title(finding.name, fontsize=10)
            draw(panel, finding, settings)
            panel.spines[["top", "right"]].set_visible(False)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7, frameon=False)
        for panel in panels[len(findings) :]:
            panel.set_axis_off()
        figure.draw_without_rendering()  # arranges the panels; once is enough
        figure.set_layout_engine("none")
        for kind, metadata in (("svg", {"Date": None}), ("png", {})):
            paths.append(stem.with_suffix(f".{kind}"))
            with replace_file(paths[-1]) as part:
                figure.savefig(part, format=kind, dpi=150, metadata=metadata)
    return paths


def _draw_curve(panel: Any, finding: Finding, kind: str, value: str) -> None:
    """Draw a curve of every model, with `value` in the legend; says where there is none."""
    for color, (model, values) in zip(_COLORS, finding.models.items(), strict=False):
        curves = trace_curves(finding.labels, values)
        if curves is None:
            panel.text(0.5, 0.5, "one class only", ha="center", va="center")
            return
        x, y = curves[kind]
        panel.plot(x, y, color=color, label=f"{model} {curves[value]:.3f}", linewidth=1.4)


def _set_shares(panel: Any, x: str, y: str) -> None:
    panel.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    panel.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])


def _draw_roc(panel: Any, finding: Finding, settings: Settings) -> None:
    _set_shares(panel, "1 − specificity", "sensitivity")
    panel.plot([0, 1], [0, 1], **_GUIDE)
    low, high = trace_band(finding, settings)
    panel.fill_between(_GRID, low, high, color=_COLORS[0], alpha=0.18, linewidth=0)
    _draw_curve(panel, finding, "roc", "auc")
    positives = finding.labels.sum()
    negatives = len(finding.labels) - positives
    if positives and negatives:
        markers = dict(zip([*settings.points, OPTIMISTIC], "osD^v<>", strict=False))
        for point, threshold in finding.points.items():
            counts = count_cells(finding.labels, finding.models[WHOLE], threshold)
            x, y = counts.fp / negatives, counts.tp / positives
            panel.plot(x, y, markers.get(point, "."), color=_COLORS[0], markersize=5, label=point)


def _draw_precision_recall(panel: Any, finding: Finding, settings: Settings) -> None:
    _set_shares(panel, "recall (sensitivity)", "precision (PPV)")
    panel.axhline(finding.labels.mean(), **_GUIDE)
    _draw_curve(panel, finding, "precision_recall", "average_precision")


def _draw_reliability(panel: Any, finding: Finding, settings: Settings) -> None:
    _set_shares(panel, "mean probability", "share of positives")
    panel.plot([0, 1], [0, 1], **_GUIDE)
    shown = {WHOLE: finding.models[WHOLE]}
    if finding.name in settings.temperatures:
        temperature = settings.temperatures[finding.name]
        shown["after temperature"] = apply_temperature(shown[WHOLE], temperature)
    for color, (name, values) in zip(_COLORS, shown.items(), strict=False):
        bins = measure_reliability(finding.labels, values)
        sizes = 10 + 90 * np.asarray(bins["slices"]) / len(values)
        panel.plot(bins["predicted"], bins["observed"], color=color, linewidth=1, label=name)
        panel.scatter(bins["predicted"], bins["observed"], sizes, color=color, alpha=0.7)


def _draw_decision(panel: Any, finding: Finding, settings: Settings) -> None:
    prevalence = finding.labels.mean()
    everyone = prevalence - (1 - prevalence) * _RISKS / (1 - _RISKS)
    panel.plot(_RISKS, everyone, **_GUIDE, label="treat all")
    panel.axhline(0, color="#1c1d1f", linewidth=1, label="treat none")
    for color, (model, values) in zip(_COLORS, finding.models.items(), strict=False):
        benefits = [measure_benefit(finding.labels, values, risk) for risk in _RISKS]
        panel.plot(_RISKS, benefits, color=color, label=model, linewidth=1.4)
    top = max(prevalence, 0.02) * 1.15
    panel.set(xlim=(0, 1), ylim=(-top / 3, top))
    panel.set(xlabel="threshold probability", ylabel="net benefit")
