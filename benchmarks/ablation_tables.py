"""The tables and the plot of `ablation.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import study

from kit.competition import LABELS, weighted_log_loss

TITLE, SMALL_TITLE = "# What each idea is worth on the phantom", "# Small sets on the phantom"


def read_rows(phantom, names) -> dict[str, dict]:
    """What was kept of each row: probabilities `p`, `seconds`, `parameters`."""
    paths = {name: phantom.directory / f"{name}.npz" for name in names}
    return {name: dict(np.load(path)) for name, path in paths.items() if path.exists()}


def measure(phantoms, names) -> dict[str, tuple[list[float], list[float | None]]]:
    """By row, over the seeds that have it: [loss, change to the base, low, high]; then by seed."""
    tables, found = [], []
    for phantom in phantoms:
        patients = phantom.directory.name + phantom.slices["PatientID"].astype(str)
        tables.append(phantom.slices.assign(PatientID=patients))
        found.append({name: kept["p"] for name, kept in read_rows(phantom, names).items()})
    measured = {}
    for name in names:
        parts = [(t, f) for t, f in zip(tables, found, strict=True) if {"base", name} <= f.keys()]
        if parts:
            models = {n: np.concatenate([f[n] for _, f in parts]) for n in {"base", name}}
            whole = study.measure_models(pd.concat([t for t, _ in parts]), models, "base")[name]
            each = [_measure_change(t, f, name) for t, f in zip(tables, found, strict=True)]
            measured[name] = whole, each
    return measured


def _measure_change(table: pd.DataFrame, found: dict, name: str) -> float | None:
    """The relative change of the loss to the base, None where the row is not made."""
    if name not in found:
        return None
    labels = table[list(LABELS)].to_numpy()
    return weighted_log_loss(labels, found[name]) / weighted_log_loss(labels, found["base"]) - 1


def format_table(phantoms, texts: dict[str, str]) -> str:
    """Each row's loss, its change to the base by seed and over all, its seconds and parameters."""
    measured = measure(phantoms, texts)
    seeds = [phantom.directory.name.removeprefix("seed") for phantom in phantoms]
    rows = [read_rows(phantom, texts) for phantom in phantoms]
    lines = [
        TITLE,
        "",
        f"The base is the demo recipe with {_epochs(phantoms[0])}. "
        f"Out-of-fold weighted log loss over phantoms of {phantoms[0].patients} patients at 64 px, "
        "and its change relative to the base in per cent: by seed, and over all, with the 95 % "
        "interval of a paired bootstrap over patients. A row's seconds are those of what it trains "
        "and embeds beside what the rows above it left, of one core, for a seed's three folds; its "
        "parameters, in millions, those of the models that predict a fold. "
        f"`make study-ablation`, {_count_minutes(rows):.0f} minutes of one core in all.",
        "",
        "| | loss | " + " | ".join(f"seed {seed}" for seed in seeds) + " | change | s | M |",
        "|---|" + "---|" * (len(seeds) + 4),
    ]
    for name, ((loss, *change), by_seed) in measured.items():
        each = " | ".join("" if one is None else _percent(one) for one in by_seed)
        kept = [row[name] for row in rows if name in row]
        seconds = np.mean([one["seconds"] for one in kept])
        millions = kept[0]["parameters"] / 1e6
        cells = f"{loss:.4f} | {each} | {_interval(change)} | {seconds:.0f} | {millions:.2f}"
        lines.append(f"| {texts[name]} | {cells} |".replace("| -", "| −"))
    lines += ["", "![The changes over all, and by seed in grey](ablation.png)"]
    return "\n".join(lines) + "\n"


def format_small(sets, texts: dict[str, str]) -> str:
    """Each row's loss and its change to the base, by the number of patients, over all seeds."""
    found = {phantoms[0].patients: measure(phantoms, texts) for phantoms in sets}
    lines = [
        SMALL_TITLE,
        "",
        "As above, with fewer patients and more epochs: "
        + "; ".join(f"{p[0].patients} patients, {_epochs(p[0])}" for p in sets)
        + ".",
        "",
        "| | " + " | ".join(f"{patients} patients" for patients in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name in found[sets[0][0].patients]:
        losses = (measured[name][0] for measured in found.values())
        cells = (f"{loss:.4f} ({_interval(change)})" for loss, *change in losses)
        lines.append(f"| {texts[name].partition(',')[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _count_minutes(rows: list[dict[str, dict]]) -> float:
    return sum(float(one["seconds"]) for kept in rows for one in kept.values()) / 60


def _epochs(phantom) -> str:
    recipe = phantom.recipe
    return (
        f"{recipe.classifier.epochs} epochs of the classifier and {recipe.lstm.epochs} of the LSTM"
    )


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _interval(change: list[float]) -> str:
    middle, low, high = map(_percent, change)
    return f"{middle}; {low} to {high}"


def draw_changes(phantoms, texts: dict[str, str], path: Path) -> None:
    """Draw each row's change relative to the base with its interval over all seeds, and by seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = measure(phantoms, texts)
    names = [name for name in measured if name not in ("classifier", "base")]
    places = np.arange(len(names), 0, -1)
    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), dpi=110, layout="constrained")
    middle, low, high = (100 * np.array([measured[n][0][k] for n in names]) for k in (1, 2, 3))
    axes.errorbar(middle, places, xerr=[middle - low, high - middle], fmt="ks", capsize=3)
    for number, marker in zip(range(len(phantoms)), "odv^<>", strict=False):
        changes = [measured[n][1][number] for n in names]
        dots = [np.nan if change is None else 100 * change for change in changes]
        axes.plot(dots, places, marker, color="0.6", markersize=5)
    axes.axvline(0, color="0.5", linewidth=1)
    axes.set_yticks(places, [texts[name] for name in names])
    axes.set_xlabel("change of the log loss to the base, %")
    figure.savefig(path)
