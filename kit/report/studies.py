"""The studies of a page of scans: which series stands for each, and what is unusual about it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.progress import format_count
from kit.report.series import round_probabilities
from kit.runs.prediction import Predictions
from kit.runs.studies import summarize_studies
from kit.slices.order import SAME_PLACE
from kit.slices.series import choose_series, name_studies

_NO_SERIES = pd.Series({"series": None, "reason": ""}, dtype=object)
_NO_CARD = {"title": "", "facts": "", "warnings": []}


def list_slices(predictions: Predictions) -> pd.DataFrame:
    """List the slices of the scored series in order, with the probabilities as `bag_{label}`.

    Those that were left out are among them, with NaN for probabilities and their `code`, unless
    one that was scored lies at the same place: they are copies.
    """
    table, skipped = predictions.table, predictions.skipped
    table = table.drop(columns=name_columns("classifier"))
    table = table.rename(columns=dict(zip(LABELS, name_columns("bag"), strict=True)))
    missing = skipped[skipped["series"].isin(table["series"]) & skipped["position"].notna()]
    places = table.groupby("series")["position"].agg(list)
    lone = [
        bool(np.abs(np.subtract(places[name], position)).min() > SAME_PLACE)
        for name, position in zip(missing["series"], missing["position"], strict=True)
    ]
    missing = missing[lone].drop_duplicates(["series", "position"])
    joined = pd.concat([table, missing.reindex(columns=[*table.columns, "code"])])
    rank = pd.Series(np.arange(table["series"].nunique()), index=table["series"].unique())
    joined["rank"] = joined["series"].map(rank)
    joined = joined.sort_values(["rank", "position"], kind="stable")
    return joined.drop(columns="rank").reset_index(drop=True)


def list_studies(predictions: Predictions, slices: pd.DataFrame) -> list[dict]:
    """Each study as the page takes it, in the order of the series; `slices` are `list_slices`'.

    `chosen` is the name of the series that stands for it, or None; `scored` are the names of its
    scored series, each with what `_describe_scan` says of it; `left_out` the other series.
    """
    described = _add_notes(predictions, slices)
    chosen = choose_series(described)
    summary = summarize_studies(predictions.table, described, predictions.series)
    values = round_probabilities(summary[list(LABELS)].astype(float)).assign(
        series=chosen["series"], reason=chosen["reason"]
    )
    best = {study: n for n, study in name_studies(chosen).items()}
    return [
        _describe_study(series, values.loc[best[key]] if key in best else None)
        for key, series in described.groupby(name_studies(described), sort=False)
    ]


def _describe_study(series: pd.DataFrame, row: pd.Series | None) -> dict:
    """A study from its rows in the table of series; `row` has what its chosen series predicts."""
    scored = series["not_scored"].isna()
    cards = {one["series"]: _describe_scan(one) for one in series[scored].to_dict("records")}
    left = [
        {**_describe_scan(one), "reason": one["not_scored"]}
        for one in series[~scored].to_dict("records")
    ]
    if row is None or row[list(LABELS)].isna().any():
        row = _NO_SERIES
    chosen = row["series"]
    card = cards.get(chosen, _NO_CARD)
    return {
        "patient": str(series["PatientID"].iloc[0]),
        "uid": str(series["StudyInstanceUID"].iloc[0] or series["SeriesInstanceUID"].iloc[0]),
        "description": _find_text(series["StudyDescription"]),
        "chosen": chosen,
        "title": card["title"],
        "reason": row["reason"],
        "probabilities": row[list(LABELS)].tolist() if chosen else None,
        "warnings": card["warnings"],
        "rest": _count_rest(len(cards) - bool(chosen), len(left)),
        "scored": cards,
        "left_out": left,
    }


def _find_text(values: pd.Series) -> str | None:
    """The first text of a column, None where there is none."""
    known = values.dropna()
    return known.iloc[0] if len(known) else None


def _describe_scan(row: dict) -> dict:
    """The `title`, `facts` and `warnings` of a series from its row of the series table."""
    uid = str(row["SeriesInstanceUID"])
    kernel, thickness = row["ConvolutionKernel"], row["SliceThickness"]
    lengths = {"{:g} mm thick": thickness, "every {:g} mm": row["spacing"]}
    facts = [
        row["plane"],
        kernel and kernel.replace("\\", " "),
        ", ".join(text.format(length) for text, length in lengths.items() if pd.notna(length)),
        format_count(int(row["slices"] or row["left_out"]), "slice"),
        row["BodyPartExamined"],
    ]
    warnings = row["warnings"].split("; ") if row["warnings"] else []
    if row["averaged"] > 1:
        warnings.append(f"thin: up to {row['averaged']:.0f} slices averaged to one")
    if row["unread"]:
        warnings.append(f"{format_count(int(row['unread']), 'slice')} could not be scored")
    return {
        "title": row["SeriesDescription"] or (f"…{uid[-12:]}" if len(uid) > 16 else uid),
        "facts": " · ".join(fact for fact in facts if fact),
        "warnings": warnings,
    }


def _add_notes(predictions: Predictions, slices: pd.DataFrame) -> pd.DataFrame:
    """The table of series with `not_scored`, the reason if it was not; `unread`, how many slices
    have no score; `averaged`, how many thin slices at most are one.
    """
    described = predictions.described
    names, groups = described["series"], slices.groupby("series")
    skipped = names.map(predictions.skipped["series"].value_counts()).fillna(0)
    gone = skipped >= described["slices"] + described["left_out"]
    reasons = np.where(gone, "none of its slices could be read", "another series was chosen")
    reasons = pd.Series(reasons, described.index).where(
        described["slices"] > 0, described["warnings"]
    )
    return described.assign(
        not_scored=reasons.mask(names.isin(slices["series"])),
        unread=names.map(groups["bag_any"].agg(lambda values: values.isna().sum())),
        averaged=names.map(groups["averaged"].max()),
    ).fillna({"unread": 0, "averaged": 1})


def _count_rest(others: int, left: int) -> str:
    """How many series there are beside the chosen one."""
    texts = [f"{others} more series scored"] * (others > 0) + [f"{left} left out"] * (left > 0)
    return ", ".join(texts)
