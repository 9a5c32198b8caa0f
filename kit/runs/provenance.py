"""Where a run's weights come from: said first on every page and in every manifest."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from pathlib import Path, PurePosixPath

from kit.files import list_archive
from kit.phantom.write import PHANTOM_MARK
from kit.recipes import Recipe
from kit.runs.directory import Run, RunError, read_config, read_recipe
from kit.runs.metrics import read_out_of_fold

SYNTHETIC = (
    "These weights have only seen synthetic heads: their predictions for patients mean nothing."
)
UNRECORDED = "Nothing is recorded of what these weights were trained on."

_UNKNOWN = "not known"
_NAMES = {
    "name": "model",
    "source": "source",
    "licence": "licence",
    "revision": "revision",
    "trained_on": "trained on",
    "figures": "known figures",
}


def is_synthetic(data: Path) -> bool:
    """Whether the data of a competition, a folder or zip, are those of `kit phantom`."""
    if data.is_file():
        return any(PurePosixPath(name).name == PHANTOM_MARK for name in list_archive(data))
    return any((folder / PHANTOM_MARK).is_file() for folder in (data, *data.glob("*/")))


def read_provenance(run: Run) -> dict:
    """What is known about a run's weights: `name`, `source`, `licence`, `revision`, `trained_on`,
    `figures`, and `synthetic`, whether they have only seen synthetic heads.
    """
    config = read_config(run)
    if "provenance" in config:
        return {"synthetic": False, **config["provenance"]}
    synthetic = bool(config.get("synthetic"))
    data = f"the data {Path(config['data']).name}" if "data" in config else _UNKNOWN
    score = read_out_of_fold(run.metrics)
    known = "none" if score is None else f"weighted log loss {score:.4f} out of fold"
    trained = ", trained as one network" if "joint" in config else ""
    return {
        "name": f"recipe {config['recipe'].get('name')}{trained}",
        "source": f"trained with kit {config.get('kit', '')}".rstrip(),
        "licence": "not stated",
        "revision": run.path.absolute().name,
        "trained_on": "synthetic heads alone (kit phantom)" if synthetic else data,
        "figures": known,
        "synthetic": synthetic,
    }


def is_recorded(provenance: dict) -> bool:
    """Whether something is known of what the weights were trained on."""
    return provenance.get("trained_on", _UNKNOWN) != _UNKNOWN


def is_adopted(run: Run) -> bool:
    """Whether the run's classifiers were imported, so that none is to be trained."""
    return "provenance" in read_config(run)


def refuse_joint(run: Run, fold: int | str) -> None:
    """Raise `RunError` where the models of a run are to be trained as one network, not apart."""
    if "joint" in (config := read_config(run)):
        raise RunError(
            f"{run}: its models are trained as one: run "
            f"`kit train-joint {config['joint'].get('run')} --out {run} --fold {fold}` first"
        )


def adopt_classifier(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with the classifiers that were imported into the run, if any were.

    All data are one part: which slices an imported classifier has seen is not known. Raises
    `RunError` where the model over series was imported too, so that there is nothing to train.
    """
    config = read_config(run) if run.config.exists() else {}
    if "provenance" not in config:
        return recipe
    if config["provenance"].get("complete", True):
        raise RunError(
            f"{run} is a complete model: use kit predict or kit predict-test, or import it again "
            "with --classifier-only to train the kit's LSTM"
        )
    imported = read_recipe(run)
    return replace(
        recipe,
        train_folds=(),
        classifier=imported.classifier,
        bag_classifier_epochs=imported.bag_classifier_epochs,
    )


def list_facts(provenance: dict) -> list[list[str]]:
    """The provenance as rows of a page: name, value."""
    return [[label, str(provenance.get(name, _UNKNOWN))] for name, label in _NAMES.items()]


def present_provenance(provenance: dict) -> str:
    """The provenance as HTML for Jupyter; the warning, if there is one, first and in red."""
    warning = f'<p style="color:#b00020"><b>{SYNTHETIC}</b></p>' if provenance["synthetic"] else ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in list_facts(provenance)
    )
    return f"{warning}<table>{rows}</table><p>Not a medical device.</p>"


def describe_provenance(provenance: dict) -> str:
    """The provenance as lines of a terminal; the warning, if there is one, first."""
    lines = [f"Warning: {SYNTHETIC}"] if provenance["synthetic"] else []
    lines += [] if is_recorded(provenance) else [f"Warning: {UNRECORDED}"]
    known = {label: value for label, value in list_facts(provenance)}
    lines.append(f"Model: {known['model']}, {known['source']}, revision {known['revision']}")
    lines.append(f"  licence: {known['licence']}; trained on {known['trained on']}")
    lines.append(f"  known figures: {known['known figures']}")
    return "\n".join(lines)
