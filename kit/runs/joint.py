"""A run whose classifiers and LSTMs are those of another run, trained on as one network."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import kit
from kit import recipes
from kit.files import hash_file, replace_file, write_json
from kit.lstm.joint import HALVES, JointStart, train_joint
from kit.processes import choose_workers
from kit.progress import format_count
from kit.recipes import Recipe
from kit.runs import status
from kit.runs.directory import (
    FILES,
    Run,
    RunError,
    is_imported,
    lock_run,
    read_config,
    read_document,
    read_recipe,
    require_file,
    require_same,
)
from kit.runs.lstms import derive_seed, is_held_out, is_training, remove_needless
from kit.runs.moved import follow_data
from kit.runs.tables import read_slices
from kit.runs.timings import time_stage
from kit.training.config import JointConfig
from kit.training.distributed import choose_device, rank, wait_for_all

# Of the configuration of the first run: what the new one has from it.
_TAKEN = ("data", "fold_table_sha256", FILES, "synthetic", "provenance")


def begin_joint(run: Run, out: Run, config: JointConfig, folds: Sequence[int | str]) -> None:
    """Begin the run `out` from `run`: its data, slices and parts, and its recipe with new epochs.

    The recipe has one classifier epoch and one LSTM epoch in the bag, the last. Raises `RunError`
    where `run` lacks slices or, for one of `folds`, weights; and where `out` was begun otherwise.
    """
    recipe = read_recipe(run)
    if out.path.resolve() == run.path.resolve():
        raise RunError(f"{out}: the joint models need a run directory of their own")
    if not run.slices.exists():
        raise RunError(
            f"{run} has no slice table, as exported and fetched models: nothing to train on"
        )
    for fold in folds:
        if not status.is_trained(out.joint(fold), config.epochs):
            _find_start(run, recipe, fold, config)
    taken = {name: value for name, value in read_config(run).items() if name in _TAKEN}
    wanted = {"recipe": recipes.to_dict(_change_recipe(recipe, config)), "options": asdict(config)}
    if rank() == 0:
        with lock_run(out, new=True):
            if out.config.exists():
                _require_same(out, wanted, taken)
            else:
                joint = {"run": str(run.path.absolute()), "options": wanted["options"]}
                begun = {**taken, "recipe": wanted["recipe"], "joint": joint}
                write_json(out.config, {"kit": kit.__version__, **begun})
            _copy_tables(run, out)
            follow_data(out, Path(taken["data"]))
    wait_for_all()


def _change_recipe(recipe: Recipe, config: JointConfig) -> Recipe:
    return replace(
        recipe,
        bag_classifier_epochs=1,
        bag_lstm_epochs=1,
        classifier=replace(recipe.classifier, epochs=config.epochs),
        lstm=replace(recipe.lstm, epochs=config.epochs),
    )


def _require_same(out: Run, wanted: dict, taken: dict) -> None:
    """Raise `RunError` unless the run `out` was begun with the same options, from such a run."""
    noted = read_config(out)
    if not isinstance(noted.get("joint"), dict):
        raise RunError(f"{out} is another run: --out names a new directory")
    # An earlier version's options lack those that are newer.
    options = _read_joint(out)
    before = {"recipe": recipes.to_dict(read_recipe(out)), "options": asdict(options)}
    kept = {name: value for name, value in taken.items() if name in (FILES, "fold_table_sha256")}
    require_same(out, {**before, **{name: noted.get(name) for name in kept}}, {**wanted, **kept})


def _read_joint(out: Run) -> JointConfig:
    """Read how the models of a run are trained jointly. Raises `RunError` if that is not noted."""
    try:
        return JointConfig(**read_config(out)["joint"]["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{out.config}: not the configuration of a joint training ({error})"
        ) from error


def find_options(recipe: Recipe, given: dict[str, Any]) -> JointConfig:
    """The options of a joint training, by name; precision is the classifier's if not given."""
    classifier = recipe.classifier
    precision = {"opt_level": classifier.opt_level, "precision": classifier.precision}
    return JointConfig(**{**precision, **given})


def describe_joint(out: Run) -> str:
    """How the models of a run were trained jointly, in words."""
    options, run = _read_joint(out), Path(str(read_config(out)["joint"].get("run"))).name
    what = "the LSTM alone" if options.freeze_classifier else "classifier and LSTM as one network"
    start = "the initial backbone" if options.from_backbone else f"the models of the run {run}"
    return f"{what}, {format_count(options.epochs, 'epoch')} from {start}"


def list_given(out: Run) -> dict[str, Any]:
    """The options that `find_options` needs to give those of the run `out`."""
    options, usual = _read_joint(out), find_options(read_recipe(out), {})
    return {name: value for name, value in vars(options).items() if value != getattr(usual, name)}


def _copy_tables(run: Run, out: Run) -> None:
    """Copy what the index of a run has made, the slice table last."""
    for source, target in (
        (run.skipped, out.skipped),
        (run.patients, out.patients),
        (run.slices, out.slices),
    ):
        if source.exists() and not out.slices.exists():
            with replace_file(target) as part:
                shutil.copyfile(source, part)


def _find_start(run: Run, recipe: Recipe, fold: int | str, config: JointConfig) -> JointStart:
    """What the joint training of a fold begins with. Raises `RunError` for missing weights."""
    if config.from_backbone:
        return JointStart(config, recipe.classifier, recipe.lstm)
    if is_imported(run, recipe, fold):
        raise RunError(f"{run}: the embeddings of fold {fold} were imported, without a classifier")
    last = recipe.classifier.epochs
    classifier = run.classifier(fold) / f"epoch{last}.safetensors"
    lstm = run.lstm(fold, last) / f"epoch{recipe.lstm.epochs}.safetensors"
    require_file(classifier, f"kit train-classifier {run} --fold {fold}")
    require_file(lstm, f"kit train-lstm {run} --fold {fold}")
    return JointStart(config, classifier, lstm)


def fit_joint(
    run: Run,
    out: Run,
    fold: int | str,
    *,
    workers: int | None = None,
    deadline: float | None = None,
) -> None:
    """Train the models of a fold of `run` as one network; leave them in `out` as two trained ones.

    `out` was begun by `begin_joint`. A second call continues.
    """
    slices, directory = read_slices(out), out.joint(fold)
    config = replace(_read_joint(out), seed=derive_seed(read_recipe(out), fold, 0))
    if not status.is_trained(directory, config.epochs):
        start = _find_start(run, read_recipe(run), fold, config)
        with time_stage(out, f"fold{fold} joint", directory):
            if rank() == 0:
                _check_start(directory, start)
            train_joint(
                slices[is_training(slices, fold)],
                start,
                directory,
                choose_device(),
                choose_workers(workers),
                slices[is_held_out(slices, fold)],
                f"Fold {fold} joint model",
                deadline,
            )
    if rank() == 0:
        _place_halves(out, fold, config.epochs)
    wait_for_all()


def _check_start(directory: Path, start: JointStart) -> None:
    """Note beside a joint model which weights it begins with; refuse others later."""
    given = {"classifier": start.classifier, "sequence": start.sequence}
    found = {name: hash_file(path) for name, path in given.items() if isinstance(path, Path)}
    path = directory / "source.json"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, {"begun_from": found})
    elif read_document(path).get("begun_from") != found:
        raise RunError(
            f"{directory} was begun with other weights than the run now has: remove it to train "
            "again"
        )


def _place_halves(out: Run, fold: int | str, epochs: int) -> None:
    """Put both halves where the stages look for a trained classifier and a trained LSTM."""
    directory, name = out.joint(fold), f"epoch{epochs}.safetensors"
    folders = dict(zip(HALVES, (out.classifier(fold), out.lstm(fold, epochs)), strict=True))
    for half, folder in folders.items():
        source = directory / f"{half}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        if source.exists():  # of a training that has just ended
            for stale in (folder / "history.json", *folder.glob("predictions*.parquet")):
                stale.unlink(missing_ok=True)
            source.replace(folder / name)
        elif not (folder / name).exists():
            raise RunError(f"{folder / name} is missing: remove {directory} to train again")
    if not status.is_trained(folders["sequence"], epochs):
        digest = hash_file(folders["classifier"] / name)
        write_json(folders["sequence"] / "source.json", {"embeddings_from": digest})
    history: Any = status.read_epochs(directory)
    for folder in folders.values():
        write_json(folder / "history.json", history)
    remove_needless(out, directory, ())
