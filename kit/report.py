"""The page that shows a run, the page that shows one's own scans, a series in a notebook."""

from __future__ import annotations

import html
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.classifier import load_classifier
from kit.competition import LABELS
from kit.ensemble import MODELS, name_columns
from kit.evaluation import bootstrap_intervals, rank_series, slice_losses, trace_curves
from kit.page import describe_series, draw_series, render_page, write_page
from kit.run import (
    Run,
    kept_classifier_epochs,
    list_folds,
    read_config,
    read_recipe,
    require,
)
from kit.scans import list_versions, summarize_series
from kit.training import choose_device

SERIES_SHOWN = 50


def write_report(run: Run, series: tuple[str, ...] = ()) -> Path:
    """Write `report.html` of a run and return its path.

    Shows the worst series, a sample of the others, and those named in `series`. Where no slice
    was held out (recipe `single`) it shows the test part, without truth and scores.
    """
    table = read_predictions(run)
    held_out = run.oof.exists()
    named = [find_series(table, name) for name in series]
    data = {**describe_run(run), **(describe_scores(table) if held_out else {})}
    data["histories"] = read_histories(run)
    if held_out:
        values = slice_losses(table[list(LABELS)], table[name_columns("bag")])
    else:
        values = table[[*name_columns("bag"), "bag_any"]].to_numpy()
    data |= _show_series(table, values, named, read_recipe(run).classifier)
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
    summary = summarize_series(table, threshold)
    table = table.rename(columns=dict(zip(LABELS, name_columns("bag"), strict=True)))
    values = table[[*name_columns("bag"), "bag_any"]].to_numpy()
    shown = _show_series(table, values, [], classifier.config, classifier)
    data = {
        "title": "Predictions of scans",
        "facts": [
            ["slices", f"{len(table)} in {table['series'].nunique()} series"],
            ["files skipped", str(len(skipped))],
            *list_versions().items(),
        ],
        "skipped": skipped["reason"].astype(str).value_counts().head(20).to_dict(),
        "threshold": threshold,
        "summary": json.loads(summary.to_json(orient="records")),
        **shown,
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
    require(run.test, f"kit ensemble {run}")
    return pd.read_parquet(run.test)


def read_series(run: Run, name: str) -> pd.DataFrame:
    """The slices of a held-out or test series with all models' probabilities, in order.

    `name` is as of `find_series`.
    """
    require(run.test, f"kit ensemble {run}")
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
    """What was run, with what, how long it took."""
    recipe = read_recipe(run)
    begun_by = read_config(run)["kit"]
    timings = json.loads(run.timings.read_text(encoding="utf-8")) if run.timings.exists() else {}
    commit = find_commit()
    facts = [
        ["recipe", recipe.name],
        ["data", Path(read_config(run)["data"]).name],
        ["folds trained", ", ".join(map(str, list_folds(recipe)))],
        ["classifier", f"{recipe.classifier.architecture}, {recipe.classifier.image_size} pixels, "
                       f"{recipe.classifier.epochs} epochs"],
        ["LSTM", f"{recipe.lstm.hidden_size} units, {recipe.lstm.epochs} epochs, "
                 f"the last {recipe.bag_lstm_epochs} averaged"],
        ["begun by", f"kit {begun_by}"],
        *map(list, list_versions().items()),
        *([["commit", commit]] if commit else []),
    ]  # fmt: skip
    return {"title": f"Run of recipe {recipe.name}", "facts": facts, "stages": timings}


def find_commit() -> str | None:
    """The commit of the checkout that `kit` is imported from; None where it is no checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


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
        epochs = kept_classifier_epochs(recipe)
        directories += [("LSTM", run.lstm(fold, epoch)) for epoch in epochs]
        for kind, directory in directories:
            path = directory / "history.json"
            if path.exists():
                history = json.loads(path.read_text(encoding="utf-8"))
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


def _show_series(table, values, named, config, classifier=None) -> dict:
    """The chosen series with their images, and the names of those not shown."""
    chosen, means = rank_series(table, values, SERIES_SHOWN)
    names = [*named, *(name for name in chosen if name not in named)]
    groups = table.groupby("series", sort=False)
    parts = [groups.get_group(name) for name in names]
    drawn = draw_series(parts, config, classifier)
    return {
        "series": [{**_describe(part), **extra} for part, extra in zip(parts, drawn, strict=True)],
        "others": [name for name in means.index if name not in set(names)],
    }


def _describe(part: pd.DataFrame) -> dict:
    models = tuple(m for m in MODELS if f"{m}_any" in part and part[f"{m}_any"].notna().all())
    return describe_series(part, models)
