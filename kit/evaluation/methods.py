"""An evaluation as a whole, and the paragraph that says what was done."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pandas as pd

import kit
from kit.competition import LABELS
from kit.evaluation.cases import Cases
from kit.evaluation.comparison import POSITION
from kit.evaluation.inputs import WHOLE
from kit.evaluation.measures import measure_cases
from kit.evaluation.rates import Rate
from kit.evaluation.settings import COLUMNS, Finding, Settings, list_findings, state
from kit.progress import format_count

_FILES = {  # where an id was found
    "predictions": "the predictions",
    "labels": "the labels",
    "predictions and labels": "the predictions and labels",
    "--against": "the model compared with",
}
_SHOWN = 3  # of the ids that do not match
_PLURALS = {"slice": "slices", "series": "series", "study": "studies", "patient": "patients"}


@dataclass(frozen=True)
class Evaluation:
    """Cases, what was asked, and every statement; `files` name the inputs with their hashes."""

    cases: Cases
    settings: Settings
    findings: list[Finding]
    statements: pd.DataFrame
    files: dict[str, str]


def evaluate(
    cases: Cases, settings: Settings, agreement: dict[str, float], files: dict[str, str]
) -> Evaluation:
    """Evaluate the cases; `agreement` is Fleiss' kappa by label where several readers gave it."""
    findings = list_findings(cases, settings)
    statements = measure_cases(cases, settings)
    kappas = [
        state("cases", "", finding.name, "Fleiss' kappa", Rate(value, np.nan, np.nan))
        for finding in findings
        if (value := agreement.get(finding.name)) is not None
    ]
    if kappas:
        statements = pd.concat([pd.DataFrame(kappas, columns=COLUMNS), statements])
        order = statements["measure"].eq("Fleiss' kappa")
        statements = pd.concat([statements[~order], statements[order]], ignore_index=True)
    return Evaluation(cases, settings, findings, statements, files)


def list_versions() -> dict[str, str]:
    """Versions of what computes the figures of an evaluation."""
    libraries = ("numpy", "scipy", "scikit-learn", "pandas", "matplotlib")
    return {
        "kit": kit.__version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def list_limits(evaluation: Evaluation) -> list[str]:
    """List what a reader has to know before the figures: exclusions, and what is not defined."""
    cases, findings = evaluation.cases, evaluation.findings
    limits = list(cases.notes)
    if len(cases.unmatched):
        groups = cases.unmatched.groupby(["unit", "found_in"], sort=False)["id"]
        parts = [
            f"{len(ids)} by {unit} in {_FILES[where]} alone ({', '.join(ids[:_SHOWN])}"
            f"{', …' if len(ids) > _SHOWN else ''})"
            for (unit, where), ids in groups
        ]
        limits.append(f"Ids that do not match (unmatched.csv): {', '.join(parts)}.")
    missing = [label for label in LABELS if label not in {f.name for f in findings}]
    if missing:
        limits.append(f"Not evaluated, for want of labels or predictions: {', '.join(missing)}.")
    for finding in findings:
        unknown = len(cases.ids) - len(finding.labels)
        if unknown:
            limits.append(f"{finding.name}: {format_count(unknown, 'missing label')} left out.")
    notes = evaluation.statements[evaluation.statements["section"] == "cases"]
    few = pd.unique(notes.loc[notes["note"] != "", "finding"])
    if len(few):
        limits.append(
            f"Fewer than ten of a class, so that intervals are unreliable: {', '.join(few)}."
        )
    if "series_count" in cases.details:
        several = int((cases.details["series_count"] > 1).sum())
        taken = (
            "of which one was predicted; cases.csv names it and why"
            if "reason" in cases.details
            else "over all of which the maximum was taken; cases.csv names the series that gave "
            f"that of {findings[0].name}"
        )
        limits.append(f"{several} of {len(cases.ids)} had several series, {taken}.")
    return limits


def describe_methods(evaluation: Evaluation) -> str:
    """Describe in a paragraph what was done, in the words of STARD 2015 and CLAIM."""
    cases, settings = evaluation.cases, evaluation.settings
    patients = len(np.unique(cases.patients))
    unit, several = cases.unit, len(np.unique(cases.patients)) < len(cases.ids)
    versions = ", ".join(f"{name} {number}" for name, number in list_versions().items())
    sentences = [
        f"The unit of analysis was the {unit}: {len(cases.ids)} {_PLURALS[unit]} of "
        f"{format_count(patients, 'patient')} had both an index test (the model's predictions, "
        f"{evaluation.files['predictions']}) and a reference standard "
        f"({evaluation.files['labels']}).",
        *list_limits(evaluation),
        "The probability of a series, study or patient was the maximum over its slices."
        if unit != "slice"
        else "",
        _describe_points(settings),
        "Areas under the ROC curve have 95 % confidence intervals by DeLong's method"
        + (", with the components of a patient's rows summed (Obuchowski)" if several else "")
        + f", and by a bootstrap over patients ({settings.resamples} resamples, seed "
        f"{settings.seed}, percentiles); average precision, Brier score and log loss by the same "
        "bootstrap; proportions by Wilson's method; likelihood ratios by the log method; "
        "calibration intercept and slope by Wald's method. The expected calibration error has ten "
        "bins of equal width.",
        *_describe_extras(cases, settings),
        f"Software: {versions}. This is not the evaluation of a medical device.",
    ]
    return " ".join(sentence for sentence in sentences if sentence) + "\n"


def _describe_extras(cases: Cases, settings: Settings) -> list[str]:
    others = [name for name in cases.models if name not in (WHOLE, POSITION)]
    return [
        "Probabilities were also recalibrated by one temperature for each finding, fitted "
        "beforehand on out-of-fold predictions of the training data."
        if settings.temperatures
        else "",
        f"Paired comparisons with {', '.join(others)} used DeLong's test for areas and the "
        "bootstrap for all other measures, without adjustment for multiple testing."
        if others
        else "",
        "As a baseline, the share of positives in the same tenth of the series among other "
        "patients of this set (five parts) saw only a slice's position."
        if POSITION in cases.models
        else "",
        f"Subgroups by {', '.join(settings.subgroups)} were described; no interaction tested."
        if settings.subgroups
        else "",
    ]


def _describe_points(settings: Settings) -> str:
    points = ", ".join(settings.points)
    text = f"Operating points were fixed beforehand: {points}." if points else ""
    if settings.youden:
        text += (
            " A further one, by Youden's index, was chosen on the evaluated set itself and is "
            "therefore optimistic."
        )
    return text.strip()
