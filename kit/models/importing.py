"""A release on this disk → a run directory, as if the kit had trained it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import kit
from kit import progress
from kit.classifier import Classifier
from kit.competition import TRAINING_PRIOR
from kit.files import hash_file, refuse_existing, write_json
from kit.lstm import make_model
from kit.models.kinds import KINDS, Part, Release, find_kind
from kit.models.reading import rename_tensors
from kit.models.released import RELEASED
from kit.recipes import Recipe, to_dict
from kit.runs.directory import ALL_DATA, Run
from kit.runs.export import MANIFEST
from kit.training.checkpoints import check_finite, save_tensors
from kit.training.config import LSTMConfig


def import_model(
    source: Path,
    out: Path,
    kind: str | None = None,
    classifier_only: bool = False,
    opt_level: str = "O0",
) -> Run:
    """Turn a released model in a folder or file into the run directory `out`.

    `kind` is one of `KINDS`, by default found by what is there. Of a release with a model over
    series, `classifier_only` takes the classifier alone: its embeddings train the kit's own LSTM.
    `opt_level` is the precision in which it will be computed, by default as released.
    Nothing in the release is executed or unpickled. Raises `InputError` where a file is missing,
    damaged, of another kind or does not fit, and where `out` is not empty.
    """
    refuse_existing(out)
    found = find_kind(source, kind)
    release = found.read(source)
    if classifier_only:
        release = Release(release.classifiers)
    for part in [*release.classifiers, *([release.sequence] if release.sequence else [])]:
        part.config = replace(part.config, opt_level=opt_level)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
        run = Run(Path(beside) / out.name)
        _write_run(run, release, next(name for name in KINDS if KINDS[name] is found))
        if out.exists():
            out.rmdir()
        run.path.rename(out)
    return Run(out)


def _write_run(run: Run, release: Release, name: str) -> None:
    """Write the weights of a release, the configuration and the manifest."""
    count, sequence = len(release.classifiers), release.sequence
    recipe = Recipe(
        name=name,
        train_folds=(),
        bag_classifier_epochs=count,
        bag_lstm_epochs=1,
        classifier=replace(release.classifiers[0].config, epochs=count),
        lstm=LSTMConfig(epochs=1) if sequence is None else sequence.config,
    )
    files = {}
    for number, part in enumerate(release.classifiers, start=1):
        files[run.classifier(ALL_DATA) / f"epoch{number}.safetensors"] = part
    if sequence is not None:
        files[run.lstm(ALL_DATA, 1) / "epoch1.safetensors"] = sequence
    for path, part in files.items():
        _write_part(path, part)
    provenance: dict[str, Any] = asdict(RELEASED[name])
    provenance["complete"] = sequence is not None
    provenance["files"] = {
        str(path.relative_to(run.path)): {"name": part.path.name, "sha256": hash_file(part.path)}
        for path, part in files.items()
    }
    config = {"kit": kit.__version__, "recipe": to_dict(recipe), "provenance": provenance}
    write_json(run.config, config)
    _write_manifest(run, name, provenance)


def _write_manifest(run: Run, name: str, provenance: dict) -> None:
    """Write what an export has too, so that the folder can be uploaded as it is."""
    listed = sorted(["config.json", *provenance["files"]])
    manifest = {
        "kit": kit.__version__,
        "recipe": name,
        "folds": [ALL_DATA],
        "prior": TRAINING_PRIOR,
        "out_of_fold": None,
        "provenance": provenance,
        "sha256": {own: hash_file(run.path / own) for own in listed},
    }
    write_json(run.path / MANIFEST, manifest)


def _write_part(path: Path, part: Part) -> None:
    """Write the weights of a part of a release with its configuration."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        sequence = isinstance(part.config, LSTMConfig)
        model = make_model(part.config) if sequence else Classifier(part.config)
    tensors = rename_tensors(part.path, part.tensors, model.state_dict(), part.rename)
    check_finite(tensors, str(part.path))
    if part.order is not None:
        for name in ("head.weight", "head.bias"):
            tensors[name] = tensors[name][part.order]
    path.parent.mkdir(parents=True, exist_ok=True)
    progress.announce(f"{part.path} → {path}")
    save_tensors(path, tensors, {"config": asdict(part.config), "epoch": 1})
