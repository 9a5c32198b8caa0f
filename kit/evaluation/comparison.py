"""Paired comparisons of models on the same cases, and a baseline that sees no image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kit.competition import LABELS
from kit.evaluation.cases import Cases
from kit.evaluation.delong import compare_areas, measure_areas
from kit.evaluation.inputs import WHOLE
from kit.evaluation.rates import Rate
from kit.evaluation.resampling import summarize
from kit.evaluation.settings import Finding, state

POSITION = "position alone"
_FOLDS, _BINS = 5, 10


def compare_models(
    finding: Finding,
    values: dict[str, dict[str, float]],
    resampled: dict[str, dict[str, np.ndarray]],
) -> list[dict]:
    """Compare every other model with the one evaluated: the other's measure minus its own.

    `values` and `resampled` hold the measures of each model, as they are and over R resamples (R,)
    that all models share. Areas are compared by DeLong's test too.
    """
    rows = []
    for model in finding.models:
        if model == WHOLE:
            continue
        name = f"{model} − {WHOLE}"
        scores = np.stack([finding.models[WHOLE], finding.models[model]])
        areas, covariance = measure_areas(finding.labels, scores, finding.cases.patients)
        difference, low, high, p = compare_areas(areas, covariance)
        note = "interval and p not defined" if np.isnan(p) else ""
        rows.append(
            state(
                "comparison", name, finding.name, "AUC", Rate(difference, low, high),
                p=p, interval="DeLong", note=note,
            )
        )  # fmt: skip
        for measure in values[WHOLE]:
            point = values[model][measure] - values[WHOLE][measure]
            rate, note = summarize(point, resampled[model][measure] - resampled[WHOLE][measure])
            rows.append(
                state(
                    "comparison", name, finding.name, measure, rate,
                    interval="bootstrap", note=note,
                )
            )  # fmt: skip
    return rows


def add_position(cases: Cases) -> Cases:
    """Add the baseline that sees only where in its series a slice lies, for cases by slice.

    Its probability is the share of positives in the same tenth of the series among other patients:
    the patients are dealt into five parts, and each part is predicted from the rest. As the rest
    has fewer positives the more a part has, which would count against the baseline, shares are
    relative to the rest's own, times that of all cases. Cases by another unit, without `seq` or
    with a blank in it, or of fewer than two patients come back as they are.
    """
    names, codes = np.unique(cases.patients, return_inverse=True)
    if cases.unit != "slice" or "relative_position" not in cases.details or len(names) < 2:
        return cases
    places = cases.details["relative_position"].to_numpy(np.float64)
    unknown = int(np.isnan(places).sum())
    if unknown:
        note = f"No baseline of position: in {unknown} of {len(places)} slices seq is no number."
        return replace(cases, notes=[*cases.notes, note])
    bins = np.minimum((places * _BINS).astype(int), _BINS - 1)
    parts = np.random.default_rng(0).permutation(len(names))[codes] % _FOLDS
    predicted = np.full(cases.labels.shape, np.nan)
    for column in range(len(LABELS)):
        labels = cases.labels[:, column]
        known = ~np.isnan(labels)
        for part in np.unique(parts):
            rest = known & (parts != part)
            if not rest.any():
                continue  # NaN: no baseline for this finding
            share = labels[rest].mean()  # counts as one more slice in each tenth
            sums = np.bincount(bins[rest], labels[rest], minlength=_BINS) + share
            shares = sums / (np.bincount(bins[rest], minlength=_BINS) + 1)
            relative = shares / share if share else np.ones(_BINS)
            predicted[parts == part, column] = relative[bins[parts == part]] * labels[known].mean()
    return replace(cases, models={**cases.models, POSITION: np.minimum(predicted, 1)})
