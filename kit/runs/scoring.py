"""Average the members of a run: its scores, test predictions and submission; average runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kit import ensemble
from kit.competition import LABELS, read_submission
from kit.embeddings import EmbeddingStore
from kit.ensemble import MODELS, name_columns
from kit.files import hash_file, write_json
from kit.recipes import Recipe
from kit.runs.directory import (
    Run,
    RunError,
    list_classifier_epochs,
    list_folds,
    list_lstm_epochs,
    read_config,
    read_document,
    read_recipe,
    require_file,
)
from kit.runs.tables import read_members, read_predicted, read_skipped, read_slices, write_frame
from kit.runs.timings import time_stage
from kit.slices.competition_files import find_competition
from kit.submission import fill_missing, read_sample, write_submission
from kit.training.distributed import rank, wait_for_all


def combine(run: Run, mix: bool | None = None) -> dict:
    """Average all members; write out-of-fold and test predictions, scores and the submission.

    With `mix` the mean is mixed with the classifiers', label by label, in the shares that fit the
    slices held out best; each fold is scored in the shares that the others give. None: as before.
    What it is good for: a released model of 2026 loses 0.03 of the AUC of epidural bleeding by its
    sequence model, and LSTMs trained on few series may lose to their classifier.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    if rank() == 0:
        with time_stage(run, "ensemble", run.metrics):
            folds = [_read_fold(run, recipe, slices, fold) for fold in list_folds(recipe)]
            predictions = pd.concat([table for table, _ in folds])
            is_test = predictions["split"] == "test"
            oof = slices.merge(predictions[~is_test].drop(columns="split"), on="SOPInstanceUID")
            if run.shares.exists() if mix is None else mix:
                write_json(run.shares, dict(zip(LABELS, _mix(run, oof), strict=True)))
            else:
                run.shares.unlink(missing_ok=True)
            scores, scored = _score(run, oof)
            filled = _write_test(run, slices, predictions[is_test], read_shares(run))
            members = [member for _, members in folds for member in members]
            metrics = {"scores": scores, "slices": scored, "filled": filled, "members": members}
            write_json(run.metrics, metrics)
    wait_for_all()
    return read_metrics(run)


def read_metrics(run: Run) -> dict:
    """Read what `combine` last wrote to `metrics.json`."""
    require_file(run.metrics, f"kit ensemble {run}")
    return read_document(run.metrics, {"scores": dict, "slices": int})


def blend_runs(runs: list[Run], out: Path) -> dict:
    """Average the submissions of several complete runs into `out`; clipped and validated.

    The members, by name and hash, are written to `*.members.json` beside it and returned, with the
    `scores` of the mean of the runs' out-of-fold bags and the number of `slices` scored; no scores
    where the runs did not hold out the same slices. Raises `RunError` where a run has no
    submission, `InputError` where the submissions have different images.
    """
    for run in runs:
        require_file(run.submission, f"kit ensemble {run}")
    members = [{"path": str(r.submission), "sha256": hash_file(r.submission)} for r in runs]
    write_submission(ensemble.bag(read_submission(run.submission) for run in runs), out)
    write_json(out.with_name(out.stem + ".members.json"), members)
    scores, scored = _score_blend(runs)
    return {"scores": scores, "slices": scored, "members": members}


def _score_blend(runs: list[Run]) -> tuple[dict, int]:
    """Score the mean of the runs' out-of-fold bags; count its slices."""
    if not all(run.oof.exists() for run in runs):
        return {}, 0
    tables = [read_predicted(run.oof).set_index("SOPInstanceUID") for run in runs]
    first = tables[0]
    if any(set(table.index) != set(first.index) for table in tables):
        return {}, 0
    mean = ensemble.bag(table[name_columns("bag")] for table in tables).to_numpy()
    return {"bag": {"all": ensemble.score(first[list(LABELS)].to_numpy(), mean)}}, len(first)


def list_places(slices: pd.DataFrame, skipped: pd.DataFrame) -> pd.DataFrame:
    """List `series` and `position` (mm) by SOPInstanceUID, of the slices and of skipped files."""
    columns = ["SOPInstanceUID", "series", "position"]
    places = pd.concat([slices[columns], skipped.loc[skipped["series"].notna(), columns]])
    return places.drop_duplicates("SOPInstanceUID").set_index("SOPInstanceUID")


def _read_fold(
    run: Run, recipe: Recipe, slices: pd.DataFrame, fold: int | str
) -> tuple[pd.DataFrame, list[dict]]:
    """Read a fold's predictions by every model (one row per slice) and its bag's members."""
    paths = [
        run.predictions(fold, epoch, lstm_epoch)
        for epoch in list_classifier_epochs(recipe)
        for lstm_epoch in list_lstm_epochs(recipe)
    ]
    for path in paths:
        require_file(path, f"kit train-lstm {run} --fold {fold}")
    members = [{"path": str(p.relative_to(run.path)), "sha256": hash_file(p)} for p in paths]
    bagged = ensemble.bag(read_members(paths))
    store = EmbeddingStore(run.store(fold, list_classifier_epochs(recipe)[-1]))
    table = slices.set_index("SOPInstanceUID").reindex(bagged.index)
    if table["path"].isna().any():
        image = table.index[table["path"].isna()][0]
        raise RunError(f"{paths[0]}: predicts {image}, which is not in {run.slices}")
    classifier = store.probabilities(bagged.index)
    rolling = ensemble.rolling_mean(classifier, table["series"])
    values = (classifier, rolling, *read_members(paths[-1:]), bagged)
    parts = [
        pd.DataFrame(np.asarray(value, np.float64), index=bagged.index, columns=name_columns(model))
        for model, value in zip(MODELS, values, strict=True)
    ]
    return pd.concat([table[["split"]], *parts], axis=1).reset_index(), members


def read_shares(run: Run) -> np.ndarray | None:
    """Read which share of the logits is the LSTMs', by label (6,); None where nothing is mixed.

    Raises `RunError` where they are not what `combine` writes.
    """
    if not run.shares.exists():
        return None
    noted = read_document(run.shares, dict.fromkeys(LABELS, float))
    shares = np.array([noted[label] for label in LABELS])
    if not ((shares >= 0) & (shares <= 1)).all():
        raise RunError(f"{run.shares}: its shares are not what kit ensemble writes")
    return shares


def _mix(run: Run, oof: pd.DataFrame) -> list[float]:
    """Mix the bag of each fold with the classifier, as the others fit best; the shares of all."""
    if oof["fold"].nunique() < 2:
        raise RunError(
            f"{run}: two folds must be held out: the shares for one come from the others"
        )
    classifier, bagged = (oof[name_columns(model)].to_numpy() for model in ("classifier", "bag"))
    if not np.isfinite(classifier).all():
        raise RunError(f"{run}: imported embeddings have no predictions to mix with")
    labels = oof[list(LABELS)].to_numpy()
    oof[name_columns("bag")] = ensemble.mix_folds(labels, oof["fold"], classifier, bagged)
    return ensemble.fit_shares(labels, classifier, bagged).tolist()


def _score(run: Run, oof: pd.DataFrame) -> tuple[dict, int]:
    """Write the out-of-fold table; return every model's scores and the number of slices."""
    if oof.empty:
        return {}, 0
    write_frame(run.oof, oof)
    models = {model: oof[name_columns(model)].to_numpy() for model in MODELS}
    # Imported embeddings come without their classifier's own predictions.
    models = {model: values for model, values in models.items() if np.isfinite(values).all()}
    return ensemble.score_folds(oof, models), len(oof)


def _write_test(
    run: Run, slices: pd.DataFrame, predictions: pd.DataFrame, shares: np.ndarray | None
) -> int | None:
    """Average the folds' test predictions, complete them to the sample's ids, write both.

    With `shares` the means of the bags are mixed with those of the classifiers.

    Returns how many images had to be filled; None without a sample submission, whose ids a
    submission must have.
    """
    mean = predictions.drop(columns="split").groupby("SOPInstanceUID", sort=False).mean()
    if shares is not None:
        classifier, bagged = (mean[name_columns(m)].to_numpy() for m in ("classifier", "bag"))
        mean[name_columns("bag")] = ensemble.mix_logits(classifier, bagged, shares)
    test = slices[slices["split"] == "test"].drop(columns=["fold", *LABELS])
    write_frame(run.test, test.join(mean, on="SOPInstanceUID", how="inner"))
    sample = find_competition(Path(read_config(run)["data"]), train=False).sample
    if sample is not None and len(mean):
        wide = mean[name_columns("bag")].set_axis(list(LABELS), axis=1)
        prior = slices.loc[slices["split"] == "train", list(LABELS)].mean().to_numpy()
        places = list_places(slices, read_skipped(run.skipped))
        complete, filled = fill_missing(wide, read_sample(sample), places, prior)
        write_frame(run.filled, filled)
        write_submission(complete, run.submission, sample)
        return len(filled)
    return None if len(mean) else 0
