"""Everything that an evaluation states, as one long table: a row per number."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit import InputError
from kit.evaluation.calibration import apply_temperature, measure_calibration
from kit.evaluation.cases import Cases
from kit.evaluation.comparison import compare_models
from kit.evaluation.delong import find_interval, measure_areas
from kit.evaluation.inputs import WHOLE
from kit.evaluation.intervals import bootstrap_intervals, slice_losses
from kit.evaluation.rates import Rate, count_cells, measure_rates, measure_share
from kit.evaluation.resampling import draw_patients, summarize, weigh_measures
from kit.evaluation.settings import COLUMNS, Finding, Settings, list_findings, state
from kit.progress import track

CALIBRATED = f"{WHOLE}, after temperature"
FEW = 10  # positives or negatives, below which an interval is marked
_GROUPS = 10  # values of a column up to which each is a subgroup; more numbers are cut into thirds
_RATES = ("sensitivity", "specificity")


def measure_cases(cases: Cases, settings: Settings) -> pd.DataFrame:
    """Measure the cases: a table of `settings.COLUMNS`, with NaN where something is not defined."""
    rows = []
    for finding in track(list_findings(cases, settings), "Findings", unit="findings"):
        rows += _count_cases(finding)
        rows += _measure_models(finding, settings)
        rows += _measure_points(finding, settings)
        for column in settings.subgroups:
            rows += _measure_subgroups(finding, column)
    rows += measure_weighted(cases, settings)
    return pd.DataFrame(rows, columns=COLUMNS)


def _count_cases(finding: Finding) -> list[dict]:
    total, positives = len(finding.labels), int(finding.labels.sum())
    few = min(positives, total - positives) < FEW
    note = f"fewer than {FEW} of a class: intervals are unreliable" if few else ""
    rates = {
        "n": Rate(total, np.nan, np.nan),
        "positives": Rate(positives, np.nan, np.nan),
        "prevalence": measure_share(positives, total),
    }
    return [
        state("cases", "", finding.name, measure, rate, note=note, interval=_name_wilson(measure))
        for measure, rate in rates.items()
    ]


def _measure_models(finding: Finding, settings: Settings) -> list[dict]:
    """Discrimination and calibration of every model, and the comparisons with the first."""
    models = dict(finding.models)
    if finding.name in settings.temperatures:
        temperature = settings.temperatures[finding.name]
        models[CALIBRATED] = apply_temperature(models[WHOLE], temperature)
    values, resampled = _resample_models(finding, models, settings)
    rows = []
    for model, probabilities in models.items():
        rows += _measure_area(finding, model, probabilities) if model != CALIBRATED else []
        for measure in ("AUC", "average precision", "Brier score", "log loss"):
            ranking = measure in ("AUC", "average precision")
            if ranking and model == CALIBRATED:
                continue  # a temperature changes no order
            rate, note = summarize(values[model][measure], resampled[model][measure])
            section = "discrimination" if ranking else "calibration"
            rows.append(
                state(section, model, finding.name, measure, rate, note=note, interval="bootstrap")
            )
        for measure, rate in measure_calibration(finding.labels, probabilities).items():
            how = "" if measure == "ECE" else "Wald"
            note = "" if np.isfinite(rate.value) else "not defined"
            rows.append(
                state("calibration", model, finding.name, measure, rate, interval=how, note=note)
            )
    return rows + compare_models(finding, values, resampled)


def _resample_models(
    finding: Finding, models: dict[str, np.ndarray], settings: Settings
) -> tuple[dict, dict]:
    """Measure each model once as it is, and over resamples that all models share.

    Returns {model: {measure: value}} and {model: {measure: (resamples,)}}.
    """
    ones = np.ones((1, len(finding.labels)))
    values: dict[str, dict[str, float]] = {}
    pieces: dict[str, list[dict[str, np.ndarray]]] = {model: [] for model in models}
    for model, probabilities in models.items():
        found = weigh_measures(finding.labels, probabilities, ones, finding.points)
        values[model] = {measure: float(value[0]) for measure, value in found.items()}
    for weights in draw_patients(finding.cases.patients, settings.resamples, settings.seed):
        for model, probabilities in models.items():
            pieces[model].append(
                weigh_measures(finding.labels, probabilities, weights, finding.points)
            )
    resampled = {
        model: {
            measure: np.concatenate([piece[measure] for piece in parts]) for measure in parts[0]
        }
        for model, parts in pieces.items()
    }
    return values, resampled


def _measure_area(
    finding: Finding, model: str, probabilities: np.ndarray, **more: str
) -> list[dict]:
    areas, covariance = measure_areas(finding.labels, probabilities[None], finding.cases.patients)
    low, high = find_interval(areas[0], covariance[0, 0])
    note = ""
    if np.isnan(areas[0]):
        note = "not defined: one class only"
    elif np.isnan(low):
        reason = "fewer than two patients of a class"
        if covariance[0, 0] == 0:
            reason = "perfect separation" if areas[0] in (0, 1) else "all predictions are equal"
        note = f"interval not defined: {reason}"
    rate = Rate(float(areas[0]), low, high)
    row = state("discrimination", model, finding.name, "AUC", rate, interval="DeLong", note=note)
    return [row | more]


def _measure_points(finding: Finding, settings: Settings) -> list[dict]:
    rows = []
    for point, threshold in finding.points.items():
        counts = count_cells(finding.labels, finding.models[WHOLE], threshold)
        exact = {"threshold": threshold, **dict(zip(("TP", "FP", "TN", "FN"), counts, strict=True))}
        rates = {name: Rate(value, np.nan, np.nan) for name, value in exact.items()}
        for measure, rate in (rates | measure_rates(counts, settings.prevalence)).items():
            how = "" if measure in exact else _name_wilson(measure)
            note = "not defined" if np.isnan(rate.value) else ""
            rows.append(
                state(
                    "operating point", WHOLE, finding.name, measure, rate,
                    group=point, interval=how, note=note,
                )
            )  # fmt: skip
    return rows


def _name_wilson(measure: str) -> str:
    if measure in ("n", "positives"):
        return ""
    return "log" if measure.startswith("LR") or "at prevalence" in measure else "Wilson"


def _measure_subgroups(finding: Finding, column: str) -> list[dict]:
    """Count each subgroup, and measure its area and its rates at the operating points."""
    rows = []
    for group, part in split_groups(finding.cases.details, column).items():
        labels, values = finding.labels[part], finding.models[WHOLE][part]
        small = Finding(finding.name, finding.cases.select(part), labels, {WHOLE: values}, {})
        group = f"{column}: {group}"
        rows += [row | {"section": "subgroup", "group": group} for row in _count_cases(small)]
        rows += _measure_area(small, WHOLE, values, section="subgroup", group=group)
        for point, threshold in finding.points.items():
            rates = measure_rates(count_cells(labels, values, threshold))
            for measure in _RATES:
                note = "not defined" if np.isnan(rates[measure].value) else ""
                rows.append(
                    state(
                        "subgroup", WHOLE, finding.name, f"{measure}, {point}", rates[measure],
                        group=group, interval="Wilson", note=note,
                    )
                )  # fmt: skip
    return rows


def split_groups(details: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """Return the subgroups of a column, a mask (N,) each; many numbers are cut into thirds."""
    if column not in details:
        raise InputError(f"--subgroup {column}: no such column; there are {', '.join(details)}")
    values = details[column].astype(str).replace("", "unknown")
    numbers = pd.to_numeric(values, errors="coerce").replace([np.inf, -np.inf], np.nan)
    told = ~values.isin(["unknown", "several values"])
    if values[told].nunique() > _GROUPS:
        if numbers[told].isna().any():
            count = values[told].nunique()
            raise InputError(f"--subgroup {column}: {count} values are too many groups")
        cuts = pd.qcut(numbers[told], 3, duplicates="drop")
        values = values.astype(object)
        values[told] = cuts.map(lambda cut: f"above {cut.left:g} to {cut.right:g}").astype(str)
        numbers = numbers.groupby(values).transform("min")
    order = pd.DataFrame({"value": values.astype(str), "number": numbers})
    names = order.sort_values(["number", "value"])["value"].unique()
    return {name: order["value"].eq(name).to_numpy() for name in names}


def measure_weighted(cases: Cases, settings: Settings) -> list[dict]:
    """Measure the competition's score of every model, and what others differ by from the first.

    By slice, over those whose six labels are known; empty for another unit.
    """
    known = ~np.isnan(cases.labels).any(axis=1)
    models = {
        model: values[known]
        for model, values in cases.models.items()
        if not np.isnan(values[known]).any()
    }
    if cases.unit != "slice" or not known.any() or WHOLE not in models:
        return []
    patients, rows = cases.patients[known], []
    losses = {
        model: slice_losses(cases.labels[known], values)[:, -1:] for model, values in models.items()
    }
    for model, values in losses.items():
        pairs = [("calibration", model, values)]
        if model != WHOLE:
            pairs.append(("comparison", f"{model} − {WHOLE}", values - losses[WHOLE]))
        for section, name, part in pairs:
            interval = bootstrap_intervals(part, patients, settings.resamples, settings.seed)[0]
            one = len(np.unique(patients)) < 2
            rate = Rate(float(part.mean()), *([np.nan] * 2 if one else map(float, interval)))
            note = "interval not defined: a single patient" if one else ""
            rows.append(
                state(section, name, "all", "weighted log loss", rate,
                      interval="bootstrap", note=note)
            )  # fmt: skip
    return rows
