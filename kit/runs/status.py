"""What a run directory has, and what is left to do."""

from __future__ import annotations

from pathlib import Path

from kit.runs.directory import (
    Run,
    list_classifier_epochs,
    list_folds,
    read_config,
    read_recipe,
    read_slices,
)


def list_stages(run: Run) -> list[tuple[str, str]]:
    """Every stage of a run with its state: `done`, `3 of 5 epochs`, `begun` or `to do`.

    Raises `RunError` where there is no run.
    """
    recipe = read_recipe(run)
    stages = [("index", _tell(run.slices.exists()))]
    for fold in list_folds(recipe):
        epochs = _tell_epochs(run.classifier(fold), recipe.classifier.epochs)
        stages.append((f"fold {fold} classifier", epochs))
        for epoch in list_classifier_epochs(recipe):
            store = run.store(fold, epoch)
            done = _tell((store / "store.json").exists(), store.exists())
            stages.append((f"fold {fold} embeddings of epoch {epoch}", done))
        for epoch in list_classifier_epochs(recipe):
            epochs = _tell_epochs(run.lstm(fold, epoch), recipe.lstm.epochs)
            stages.append((f"fold {fold} LSTM on epoch {epoch}", epochs))
    tested = not run.slices.exists() or (read_slices(run)["split"] == "test").any()
    for path in (run.metrics, *([run.submission] if tested else []), run.report):
        stages.append((path.name, _tell(path.exists())))
    return stages


def format_stages(run: Run) -> str:
    """`list_stages` as lines, and what to call next."""
    stages = list_stages(run)
    lines = [f"{name:<36} {state}" for name, state in stages]
    left = [name for name, state in stages if state != "done"]
    data = read_config(run)
    name = data["recipe"]["name"]
    lines.append(
        f"{len(left)} of {len(stages)} stages left; with the same flags this goes on:\n"
        f"kit run {data['data']} --recipe {name} --run {run}"
        if left
        else "complete"
    )
    return "\n".join(lines)


def _tell(done: bool, begun: bool = False) -> str:
    return "done" if done else "begun" if begun else "to do"


def _tell_epochs(directory: Path, epochs: int) -> str:
    done = len(list(directory.glob("epoch*.safetensors")))
    if done >= epochs:
        return "done"
    return f"{done} of {epochs} epochs" if directory.exists() else "to do"
