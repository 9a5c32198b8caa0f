"""The page that shows a run, the page that shows one's own scans, a series in a notebook."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from kit.classifier import load_classifier
from kit.cli.tables import format_count
from kit.competition import LABELS
from kit.ensemble import MODELS, name_columns
from kit.evaluation.curves import trace_curves
from kit.evaluation.intervals import bootstrap_intervals, slice_losses
from kit.files import read_commit, read_json
from kit.report.gradcam import find_map_layer, locate_labels
from kit.report.page import (
    describe_series,
    draw_series,
    render_page,
    round_probabilities,
    write_page,
)
from kit.report.ranking import rank_series
from kit.runs.directory import (
    Run,
    list_classifier_epochs,
    list_folds,
    read_config,
    read_recipe,
    read_slices,
    require_file,
)
from kit.runs.scans import count_reasons, describe_machine, list_versions, summarize_series
from kit.training.distributed import choose_device

SERIES_SHOWN = 50


def write_report(run: Run, series: tuple[str, ...] = ()) -> Path:
    """Write `report.html` of a run and return its path.

    Shows the worst series, a sample of the others, and those named in `series`. Where no slice
    was held out (recipe `single`) it shows the test part, without truth and scores.
    """
    recipe = read_recipe(run)
    table = read_predictions(run)
    held_out = run.oof.exists()
    named = list(dict.fromkeys(find_series(table, name) for name in series))
    data = {**describe_run(run), **(describe_scores(table) if held_out else {})}
    data["histories"] = read_histories(run)
    data |= _show_series(table, _choose_series(table, held_out), named, recipe.classifier)
    return write_page(run.report, data)


def write_scan_report(
    table: pd.DataFrame,
    path: Path,
    weights: Path,
    skipped: pd.DataFrame,
    threshold: float = 0.5,
) -> Path:
    """Write the page of one's own scans: no truth, with Grad-CAM overlays.

    `table` and `skipped` are those of `prediction.predict_folder`; `weights` are those of the
    classifier that is asked where it looks, also for the size and crop of the images.
    """
    classifier = load_classifier(weights).to(choose_device())
    layer = find_map_layer(classifier)
    summary = summarize_series(table, threshold).assign(series=table["series"].unique())
    summary = round_probabilities(summary)
    table = table.rename(columns=dict(zip(LABELS, name_columns("bag"), strict=True)))
    locate = None if layer is None else partial(locate_labels, classifier, layer)
    chosen = _choose_series(table, held_out=False)
    data = {
        "title": "Predictions of scans",
        "facts": [
            ["slices", f"{len(table)} in {table['series'].nunique()} series"],
            ["files skipped", str(len(skipped))],
            *list_versions().items(),
            *describe_machine().items(),
        ],
        "skipped": count_reasons(skipped),
        "threshold": threshold,
        "summary": json.loads(summary.to_json(orient="records")),
        "unmapped": classifier.config.architecture if layer is None else None,
        **_show_series(table, chosen, [], classifier.config, locate),
    }
    return write_page(path, data)


@dataclass(frozen=True)
class SeriesPicture:
    """A series of a run; shows itself in a notebook."""

    page: str

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts" '
            'style="width:100%;height:780px;border:0"></iframe>'
        )


def show_series(run: Run, series: str) -> SeriesPicture:
    """The slices and probabilities of one series of a run, as a picture for a notebook.

    `series` is a series' name or a part of it that no other has. Raises `ValueError` else.
    """
    part = read_series(run, series)
    return SeriesPicture(render_page(present_series(part, read_recipe(run).classifier)))


def present_series(part: pd.DataFrame, config) -> dict:
    """The data of a page of one series alone."""
    (drawn,) = draw_series([part], config)
    return {"title": "A series", "facts": [], "series": [{**_describe(part), **drawn}]}


def read_predictions(run: Run) -> pd.DataFrame:
    """The held-out slices with all models' probabilities; the test part where none are."""
    if run.oof.exists():
        return pd.read_parquet(run.oof)
    require_file(run.test, f"kit ensemble {run}")
    return pd.read_parquet(run.test)


def read_series(run: Run, name: str) -> pd.DataFrame:
    """The slices of a held-out or test series with all models' probabilities, in order.

    `name` is as of `find_series`.
    """
    require_file(run.test, f"kit ensemble {run}")
    tables = [pd.read_parquet(path) for path in (run.oof, run.test) if path.exists()]
    found = find_series(pd.concat([table[["series"]] for table in tables]), name)
    parts = [table[table["series"] == found] for table in tables]
    return next(part for part in parts if len(part))


def find_series(table: pd.DataFrame, name: str) -> str:
    """The one series whose name is, or else contains, `name`. Raises `ValueError` else."""
    names = table["series"].unique()
    if name in names:
        return name
    found = [other for other in names if name in other]
    if len(found) != 1:
        number = len(found) or "no"
        raise ValueError(f"{number} of the {len(names)} series have {name!r} in their name")
    return found[0]


def describe_run(run: Run) -> dict:
    """What was run, on what, how long it took; and with what the report was written."""
    recipe, config = read_recipe(run), read_config(run)
    timings = read_json(run.timings) if run.timings.exists() else {}
    skipped, commit = pd.read_csv(run.skipped, usecols=["reason"]), find_commit()
    facts = [
        ["recipe", recipe.name],
        ["data", Path(config["data"]).name],
        *_count_parts(read_slices(run), recipe.classifier.repair),
        ["files skipped", str(len(skipped))],
        ["folds trained", ", ".join(map(str, list_folds(recipe)))],
        ["classifier", f"{recipe.classifier.architecture}, {recipe.classifier.image_size} pixels, "
                       f"{format_count(recipe.classifier.epochs, 'epoch')}"],
        ["LSTM", f"{recipe.lstm.hidden_size} units, {format_count(recipe.lstm.epochs, 'epoch')}, "
                 f"the last {recipe.bag_lstm_epochs} averaged"],
        ["begun with", f"kit {config['kit']}"],
    ]  # fmt: skip
    versions = list_versions()
    return {
        "title": f"Run of recipe {recipe.name}",
        "facts": facts,
        "written": [
            ["kit", versions.pop("kit") + (f", commit {commit}" if commit else "")],
            *map(list, versions.items()),
            *map(list, describe_machine().items()),
        ],
        "stages": timings,
        "skipped": count_reasons(skipped),
    }


def _count_parts(slices: pd.DataFrame, repair: bool) -> list[list[str]]:
    """The size of the training and the test part, and how many files had a wrong intercept."""
    facts = []
    for split, part in slices.groupby("split", sort=False):
        series, patients = part["series"].nunique(), part["PatientID"].nunique()
        slices_of = f"{format_count(len(part), 'slice')} of {format_count(patients, 'patient')}"
        text = f"{slices_of} in {series} series"
        facts.append([f"{split}{'ing' * (split == 'train')} part", text])
    done = "put right" if repair else "left as it was"
    wrong = int(slices["repaired"].sum())
    text = f"in {format_count(wrong, 'file')}, {done}" if wrong else "in no file"
    return [*facts, ["wrong rescale intercept", text]]


def find_commit() -> str | None:
    """The commit of the checkout that `kit` is imported from; None where it is no checkout."""
    root = Path(__file__).parents[2]
    commit = read_commit(root) if (root / ".git").exists() else None
    return commit and commit[:12]


def describe_scores(table: pd.DataFrame) -> dict:
    """Every model's log loss with its interval, by fold and over all; curves; the LSTM's gain."""
    labels = table[list(LABELS)].to_numpy()
    folds, patients = table["fold"].to_numpy(), table["PatientID"].to_numpy()
    parts = {"all": np.ones(len(table), bool), **{str(k): folds == k for k in np.unique(folds)}}
    # Embeddings from elsewhere come without their classifier's own predictions.
    models = [model for model in MODELS if table[name_columns(model)].notna().all(axis=None)]
    losses = {model: slice_losses(labels, table[name_columns(model)]) for model in models}
    scores = {
        model: {name: _score(values[part], patients[part]) for name, part in parts.items()}
        for model, values in losses.items()
    }
    curves = {
        label: {
            model: trace_curves(table[label].to_numpy(), table[f"{model}_{label}"].to_numpy())
            for model in models
        }
        for label in LABELS
    }
    return {
        "scores": scores,
        "gain": (
            _score((losses["bag"] - losses["rolling_mean"])[:, -1:], patients)[0]
            if "rolling_mean" in models
            else None
        ),
        "positives": dict(zip(LABELS, labels.sum(axis=0).tolist(), strict=True)),
        "slices": len(table),
        "patients": int(table["PatientID"].nunique()),
        "curves": curves,
    }


def read_histories(run: Run) -> list[dict]:
    """The loss after each epoch of every training that has one: `kind`, `fold`, `loss`, …"""
    recipe, found = read_recipe(run), []
    for fold in list_folds(recipe):
        directories = [("classifier", run.classifier(fold))]
        epochs = list_classifier_epochs(recipe)
        directories += [("LSTM", run.lstm(fold, epoch)) for epoch in epochs]
        for kind, directory in directories:
            path = directory / "history.json"
            if path.exists():
                history = read_json(path)
                found.append({
                    "kind": kind,
                    "fold": str(fold),
                    "loss": [epoch["loss"] for epoch in history],
                    "validation": [epoch.get("validation_loss") for epoch in history],
                })  # fmt: skip
    return found


def _score(losses: np.ndarray, patients: np.ndarray) -> list[list[float]]:
    """(N, K) losses → K triples: mean, and the ends of its 95 % interval."""
    triples = np.column_stack([losses.mean(axis=0), bootstrap_intervals(losses, patients)])
    return np.round(triples, 6).tolist()


def _choose_series(table: pd.DataFrame, held_out: bool) -> tuple[list, pd.DataFrame]:
    """`rank_series`: by the bag's mistakes, or without truth by its highest probabilities."""
    if held_out:
        values = slice_losses(table[list(LABELS)], table[name_columns("bag")])
        return rank_series(table, values, SERIES_SHOWN)
    values = table[[*name_columns("bag"), "bag_any"]].to_numpy()
    return rank_series(table, values, SERIES_SHOWN, "max")


def _show_series(table, ranked, named, config, locate=None) -> dict:
    """The chosen series with their images, and the names of those not shown.

    `ranked` is what `rank_series` gives; the series `named` come before it, and the page opens
    with the first of them.
    """
    chosen, rates = ranked
    names = [*named, *(name for name in chosen if name not in named)]
    groups = table.groupby("series", sort=False)
    parts = [groups.get_group(name) for name in names]
    drawn = draw_series(parts, config, locate)
    return {
        "series": [{**_describe(part), **extra} for part, extra in zip(parts, drawn, strict=True)],
        "named": bool(named),
        "others": [name for name in rates.index if name not in set(names)],
    }


def _describe(part: pd.DataFrame) -> dict:
    models = tuple(m for m in MODELS if f"{m}_any" in part and part[f"{m}_any"].notna().all())
    return describe_series(part, models)
