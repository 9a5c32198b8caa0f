"""What is asked of an evaluation, and the form of what it states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.cases import Cases
from kit.evaluation.inputs import WHOLE
from kit.evaluation.rates import Rate, choose_thresholds

FINDINGS = ("any", *LABELS[:5])  # in the order of the tables
OPTIMISTIC = "Youden on this set (optimistic)"
# Of a statement. `section` is one of cases, discrimination, calibration, operating point,
# comparison, subgroup; `group` an operating point or a subgroup; `interval` how it was made.
COLUMNS = ["section", "model", "finding", "group", "measure", "value", "low", "high", "p",
           "interval", "note"]  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is asked of an evaluation.

    `points` are operating points fixed beforehand: a threshold by name and label. `temperatures`
    are a run's, by label, with None where none could be fitted. `youden` adds a point chosen on the
    evaluated set itself.
    """

    points: dict[str, dict[str, float]] = field(default_factory=dict)
    temperatures: dict[str, float | None] = field(default_factory=dict)
    youden: bool = False
    prevalence: float | None = None
    subgroups: tuple[str, ...] = ()
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise InputError(f"the prevalence {self.prevalence:g} is not between 0 and 1")
        if self.resamples < 100:
            raise InputError(f"{self.resamples} resamples are too few for an interval: 100 or more")
        twice = {column for column in self.subgroups if self.subgroups.count(column) > 1}
        if twice:
            raise InputError(f"--subgroup names {min(twice)} twice")
        for thresholds in self.points.values():
            for label, threshold in thresholds.items():
                if not 0 <= threshold <= 1:
                    raise InputError(f"the threshold {threshold:g} of {label} is no probability")


@dataclass(frozen=True)
class Finding:
    """One finding of the cases whose label is known: labels (N,), every model's values (N,)."""

    name: str
    cases: Cases
    labels: np.ndarray
    models: dict[str, np.ndarray]
    points: dict[str, float]


def list_findings(cases: Cases, settings: Settings) -> list[Finding]:
    """List the findings that have both labels and predictions, `any` first.

    Raises `InputError` where there is none.
    """
    found = []
    for name in FINDINGS:
        column = LABELS.index(name)
        known = ~np.isnan(cases.labels[:, column])
        models = {model: values[known, column] for model, values in cases.models.items()}
        models = {model: values for model, values in models.items() if not np.isnan(values).any()}
        if known.any() and WHOLE in models:
            labels, part = cases.labels[known, column], cases.select(known)
            points = _find_points(name, labels, models[WHOLE], settings)
            found.append(Finding(name, part, labels, models, points))
    if not found:
        raise InputError("no finding has both labels and predictions")
    return found


def state(section: str, model: str, finding: str, measure: str, rate: Rate, **more: Any) -> dict:
    """Return one statement of the long table: a measure with its interval."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"p": np.nan}
    named = {"section": section, "model": model, "finding": finding, "measure": measure}
    return row | named | rate._asdict() | more


def _find_points(
    name: str, labels: np.ndarray, probabilities: np.ndarray, settings: Settings
) -> dict[str, float]:
    points = {point: values[name] for point, values in settings.points.items() if name in values}
    if settings.youden:
        chosen = choose_thresholds(labels, probabilities)
        points |= {OPTIMISTIC: chosen["Youden"]} if chosen else {}
    return points
