"""Tables for the terminal, at most 80 columns wide."""

from __future__ import annotations

from kit.competition import LABELS
from kit.ensemble import MODELS
from kit.progress import format_count

_SHORT = ("epidur", "parench", "ventric", "subarac", "subdur", "any")


def format_scores(metrics: dict) -> str:
    """Out-of-fold log loss per label and weighted, a row a model and fold."""
    scores = metrics["scores"]
    lines = [
        f"Out-of-fold log loss of {metrics['slices']} slices",
        f"{'model':<13}{'fold':>5}"
        + "".join(f"{name:>8}" for name in _SHORT)
        + f"{'weighted':>10}",
    ]
    if not scores:
        lines = ["No slices were held out, so there is no out-of-fold score."]
    for model, folds in scores.items():
        for fold, losses in folds.items():
            values = "".join(f"{losses[label]:>8.4f}" for label in LABELS)
            name = MODELS.get(model, model) if fold == "all" else ""
            lines.append(f"{name:<13}{fold:>5}{values}{losses['weighted']:>10.4f}")
    filled = metrics.get("filled", 0)
    if filled is None:
        lines.append("No submission.csv: the data hold no stage_2_sample_submission.csv.")
    elif filled:
        lines.append(f"{format_count(filled, 'test image')} without a prediction: see filled.csv")
    return "\n".join(lines)
