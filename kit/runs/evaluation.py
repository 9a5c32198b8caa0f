"""An evaluation from files: predictions, labels, another model's predictions, and the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.cases import Cases, add_model, match_cases
from kit.evaluation.comparison import add_position
from kit.evaluation.inputs import read_predictions
from kit.evaluation.leakage import exclude_seen
from kit.evaluation.methods import Evaluation, evaluate
from kit.evaluation.presets import PRESETS
from kit.evaluation.settings import Settings
from kit.files import hash_file
from kit.runs.calibration import read_calibration
from kit.runs.directory import Run
from kit.runs.patients import is_from_elsewhere, read_patients


@dataclass(frozen=True)
class Sources:
    """The files of an evaluation; `columns` map our names to theirs.

    `preset` is a form of labels (`presets.PRESETS`), `unit` that of the analysis, where it is not
    that of the labels; `against` another model's predictions; `run` what made the predictions.
    """

    predictions: Path
    labels: Path
    preset: str = "scan"
    unit: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    label_columns: dict[str, str] = field(default_factory=dict)
    against: Path | None = None
    against_columns: dict[str, str] = field(default_factory=dict)
    run: Run | None = None
    exclude_seen: bool = False


def evaluate_files(sources: Sources, settings: Settings) -> Evaluation:
    """Evaluate files. The run adds its operating points and temperatures to `settings`.

    Without operating points it is 0.5. Raises `InputError` where the files cannot be read or do not
    belong together, and where the run was trained on patients of the labels that are not to be
    excluded; `RunError` where the run has no calibration (`kit calibrate`).
    """
    preset = PRESETS[sources.preset]
    labels = preset.read(sources.labels, sources.label_columns)
    predictions = preset.adapt(read_predictions(sources.predictions, sources.columns))
    if sources.run is not None and predictions.calibrated:
        raise InputError(
            f"{sources.predictions}: is calibrated already; with --run, evaluate what kit predict "
            "writes without --calibrated: before and after both come of it"
        )
    cases = match_cases(predictions, labels, sources.unit or labels.unit)
    if sources.against is not None:
        other = preset.adapt(read_predictions(sources.against, sources.against_columns))
        cases = add_model(cases, sources.against.name, other)
    points, temperatures = settings.points, settings.temperatures
    if sources.run is not None:
        known = read_calibration(sources.run, cases.unit)
        points, temperatures = {**known["points"], **points}, known["temperatures"]
        cases = _check_patients(cases, sources.run, sources.exclude_seen)
    else:
        note = "No run was given: whether it was trained on these patients is not known."
        cases = replace(cases, notes=[*cases.notes, note])
    points = points or {"0.5": dict.fromkeys(LABELS, 0.5)}
    settings = replace(settings, points=points, temperatures=temperatures)
    return evaluate(add_position(cases), settings, labels.agreement, _name_files(sources))


def _check_patients(cases: Cases, run: Run, exclude: bool) -> Cases:
    """Check the cases against the run's training patients, and say what cannot be checked."""
    seen, notes = read_patients(run), []
    if seen is not None:
        cases = exclude_seen(cases, seen, exclude)
    else:
        notes.append("The run does not say which patients it was trained on.")
    if is_from_elsewhere(run):
        notes.append(
            "The run's classifier was trained elsewhere: whether it has seen these patients is "
            "not known."
        )
    return replace(cases, notes=[*cases.notes, *notes])


def _name_files(sources: Sources) -> dict[str, str]:
    """Name the files that were used, each with the beginning of its hash."""
    paths = {
        "predictions": sources.predictions,
        "labels": sources.labels,
        "compared with": sources.against,
    }
    named = {
        role: f"{path.name} (sha256 {hash_file(path)[:12]})"
        for role, path in paths.items()
        if path is not None
    }
    return named if sources.run is None else {**named, "run": sources.run.path.absolute().name}
