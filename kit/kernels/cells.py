"""What the cells of the Kaggle notebooks call: check the inputs, run on every GPU, show."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit import KitError
from kit.competition import LABELS, TRAINING_PRIOR
from kit.ensemble import name_columns
from kit.files import replace_file, write_json
from kit.kernels import launch
from kit.kernels.inputs import (
    KernelError,
    copy_files,
    find_data,
    find_marked,
    link_input,
    restore_run,
)
from kit.processes import count_cores
from kit.processes.ending import describe_failure
from kit.progress import show_messages
from kit.recipes import find_recipe, format_flags
from kit.runs.directory import ALL_DATA, Run, RunError, list_folds, read_recipe
from kit.runs.export import MANIFEST, check_export, read_prior
from kit.runs.metrics import read_out_of_fold
from kit.runs.provenance import describe_provenance, read_provenance
from kit.runs.tables import read_predicted
from kit.slices.competition_files import SAMPLE_FILE, find_competition
from kit.submission import read_sample, validate_submission, write_submission
from kit.training.loop import OutOfTime

_OUTCOME = "outcome.json"  # how a notebook ended, read by `kit push-kernels`
BACKBONE = "backbone.safetensors"  # initial weights, in a dataset of their own
RUN = "run"  # the run directory in the output of a training notebook
_AUTO = "--classifier-image-size=auto"
_WORK = "work"  # in the output of a prediction that stopped in time: what it had embedded


@dataclass(frozen=True)
class Prediction:
    """The inputs of a notebook that predicts, and the submission that it writes."""

    data: Path
    run: Run
    prior: np.ndarray  # (6,), of the training part
    sample: Path
    submission: Path
    score: float | None = None  # held out

    @property
    def filled(self) -> int:
        """How many images could not be read and were filled in."""
        path = self.submission.with_name(f"{self.submission.stem}.filled.csv")
        return len(pd.read_csv(path)) if path.exists() else 0


def prepare_prediction(
    root: Path | None = None, submission: Path = Path("submission.csv")
) -> Prediction:
    """Find and check the inputs; first of all, write a valid submission of the training prior.

    Raises `KernelError` with one sentence that says what is missing and what to do.
    """
    data, sample = _open_competition(root, submission)
    weights = find_marked(MANIFEST, root)
    if len(weights) != 1:
        raise KernelError(
            f"{len(weights) or 'No'} sets of trained weights are attached: attach exactly one "
            f"dataset with {MANIFEST} in it; {submission} holds the training prior alone."
        )
    run = Run(weights[0])
    try:
        manifest, prior = check_export(run.path), read_prior(run)
    except RunError as error:
        raise KernelError(f"{error}; {submission} holds the training prior alone.") from None
    print(describe_provenance(read_provenance(run)))
    score = manifest["out_of_fold"]
    return Prediction(data, run, prior, sample, submission, score)


def predict(prediction: Prediction, hours: float = 11.5, root: Path | None = None) -> None:
    """Predict the test part on every GPU within `hours`; say which submission is left, and why.

    Continues from the earlier output of this notebook if that is attached.
    """
    deadline = time.monotonic() + hours * 3600
    files = ["--run", str(prediction.run), "--out", str(prediction.submission), "--overwrite"]
    unfinished = prediction.submission.with_name(f".{prediction.submission.stem}.kit-work")
    kept = prediction.submission.with_name(_WORK)
    for earlier in find_marked(f"{_WORK}/source.json", root):
        print(f"Continuing from {earlier}")
        copy_files(earlier / _WORK, unfinished)
    with _leave_outcome("predictions", prediction):
        _run_on_gpus("predict-test", str(prediction.data), *files, *_limit_hours(deadline))
    if unfinished.exists():  # a name without a dot: what is hidden may not be kept
        unfinished.rename(kept)


def tonight(
    recipe: str, hours: float, changes: dict | None = None, root: Path | None = None
) -> Prediction:
    """Train all stages of a recipe and predict the test part, on every GPU, within `hours`.

    First of all it writes a valid submission of the training prior. Continues from the earlier
    output of this notebook if that is attached. `changes` are as for `train_classifier`; "auto" as
    image size is the largest with which the run ends in time, by the plan.
    """
    deadline, submission = time.monotonic() + hours * 3600, Path("submission.csv")
    data, sample = _open_competition(root, submission)
    prior = np.array(list(TRAINING_PRIOR.values()))
    prediction = Prediction(data, run := Run(Path(RUN)), prior, sample, submission)
    with _leave_outcome("predictions", prediction):
        flags = _begin_run(run, recipe, changes or {}, root)
        kept, planned = str(link_input(data, "competition")), ["--hours", str(max(hours, 0.1))]
        try:
            launch.run_command("plan", kept, *flags, *planned)
            launch.run_command("index", kept, "--run", str(run), *flags, *planned)
        except KernelError:  # which has been printed; without a plan the recipe's own size serves
            flags = [flag for flag in flags if flag != _AUTO]
            launch.run_command("index", kept, "--run", str(run), *flags)
        launch.run_command("status", str(run))
        for fold in list_folds(read_recipe(run)):
            for command in ("train-classifier", "embed", "train-lstm"):
                words = [command, str(run), "--fold", str(fold), *_limit_hours(deadline)]
                _run_on_gpus(*words, workers=command != "train-lstm")
        launch.run_command("ensemble", str(run))
        _take_submission(run, submission)
    if submission.with_suffix(".parquet").exists():
        with contextlib.suppress(KernelError):  # which has been printed, and costs the page alone
            launch.run_command("report", str(run))
    return prediction


def _open_competition(root: Path | None, submission: Path) -> tuple[Path, Path]:
    """Find the competition and write the training prior; return its folder and its sample."""
    show_messages()
    data = find_data(root)
    files = find_competition(data, train=False)
    if files.sample is None or not files.test:
        raise KernelError(
            f"{data} holds no {SAMPLE_FILE if files.test else 'test images'}: attach the whole "
            "competition."
        )
    prior = pd.DataFrame(TRAINING_PRIOR, read_sample(files.sample))
    write_submission(prior, submission, files.sample)
    print(f"Data:     {data}, {len(files.test):,} test files")
    print(f"Machine:  {torch.cuda.device_count()} GPUs, {count_cores()} cores")
    print(f"{submission} holds the training prior until the prediction replaces it.")
    return data, Path(files.sample)


def _begin_run(run: Run, recipe: str, changes: dict, root: Path | None) -> list[str]:
    """Restore the earlier output of the same recipe; return the recipe as flags of `kit run`."""
    backbone = find_marked(BACKBONE, root)
    if backbone:
        changes = changes | {
            "classifier.weights": str(link_input(backbone[0] / BACKBONE, BACKBONE))
        }
    # Without them random ones: there is no network to fetch any by.
    changes = {"classifier.weights": ""} | changes
    print(f"Initial weights: {changes['classifier.weights'] or 'none attached, random ones'}")
    earlier = [folder / RUN for folder in find_marked(f"{RUN}/config.json", root)]
    flags = format_flags(changes)
    fixed = {name: value for name, value in changes.items() if value != "auto"}
    restore_run(run, find_recipe(recipe, fixed), earlier, any_size=_AUTO in flags)
    return ["--recipe", recipe, *flags]


def _take_submission(run: Run, submission: Path) -> None:
    """Copy what the run says about the test part to where `kit predict-test` writes it."""
    names = dict(zip(name_columns("bag"), LABELS, strict=True))
    read_predicted(run.test).rename(columns=names).to_parquet(submission.with_suffix(".parquet"))
    shutil.copyfile(run.filled, submission.with_name(f"{submission.stem}.filled.csv"))
    with replace_file(submission) as part:  # the prior stays where the disk is full
        shutil.copyfile(run.submission, part)


def train_classifier(
    recipe: str,
    fold: int | str,
    hours: float,
    changes: dict | None = None,
    root: Path | None = None,
) -> None:
    """Index the data, train one fold's classifier and embed every slice, within `hours`.

    `fold` is `ALL_DATA` for one model on all data, of which nothing is held out. Continues from
    the earlier output of this notebook if that is attached. `changes` are options of the recipe,
    named as by `recipes.list_options`.
    """
    show_messages()
    deadline = time.monotonic() + hours * 3600
    run = Run(Path(RUN))
    with _leave_outcome("finished"):
        data = link_input(find_data(root), "competition")
        folds = () if fold == ALL_DATA else (fold,)
        flags = _begin_run(run, recipe, {**(changes or {}), "train_folds": folds}, root)
        launch.run_command("index", str(data), "--run", str(run), *flags)
        for command in ("train-classifier", "embed"):
            _run_on_gpus(command, str(run), "--fold", str(fold), *_limit_hours(deadline))
        print(f"Fold {fold}: train-classifier is finished; the run is in {run.path.absolute()}.")


def train_lstm(fold: int | str, hours: float, root: Path | None = None) -> None:
    """Train one fold's LSTM on the attached output of `train-classifier`, within `hours`.

    Continues from the earlier output of this notebook if that is attached too. In the end it
    scores the fold and writes its `submission.csv`.
    """
    show_messages()
    deadline = time.monotonic() + hours * 3600
    run, part = Run(Path(RUN)), Path(f"fold{fold}") / "embeddings"
    attached = [folder / RUN for folder in find_marked(f"{RUN}/config.json", root)]
    embedded = [folder for folder in attached if (folder / part).is_dir()]
    if len(embedded) != 1:
        raise KernelError(
            f"{len(embedded) or 'No'} attached notebooks hold embeddings of fold {fold}: attach "
            "the output of exactly one train-classifier notebook."
        )
    link_input(find_data(root), "competition")
    earlier = [folder for folder in attached if folder not in embedded]
    left = ("embeddings", "classifier/checkpoint.safetensors")
    restore_run(run, read_recipe(Run(embedded[0])), embedded + earlier, left)
    # The embeddings are too large for the output of this notebook: read them in place.
    link = run.path / part
    link.symlink_to(embedded[0] / part)
    try:
        with _leave_outcome("finished"):
            options = ["--fold", str(fold), *_limit_hours(deadline)]
            _run_on_gpus("train-lstm", str(run), *options, workers=False)
            launch.run_command("ensemble", str(run))
            launch.run_command("report", str(run))
            print(f"Fold {fold}: train-lstm is finished; the run is in {run.path.absolute()}.")
    finally:
        link.unlink()
    if run.submission.exists():
        shutil.copyfile(run.submission, "submission.csv")


@contextlib.contextmanager
def _leave_outcome(done: str, prediction: Prediction | None = None) -> Iterator[None]:
    """Say and write down whether the commands of a notebook left `done`, and why if not.

    A notebook that has a submission to leave ends without an error where its commands fail.
    """
    outcome, failure = {"left": done, "reason": ""}, None
    try:
        yield
    except OutOfTime as stop:
        outcome = {"left": "unfinished", "reason": str(stop)}
        print(f"{stop}. Push the notebook again: it continues from the output of this version.")
    except (KitError, OSError) as error:
        failure, reason = error, describe_failure(error).reason
        outcome = {"left": "training prior" if prediction else "nothing", "reason": reason}
    path = Path(_OUTCOME)
    if prediction:
        path = prediction.submission.with_name(_OUTCOME)
        outcome |= _describe_submission(prediction, outcome)
    write_json(path, outcome)
    if failure and not prediction:
        raise failure


def _describe_submission(prediction: Prediction, outcome: dict) -> dict:
    """Check the submission, say which of the two it is; return what belongs to the outcome."""
    images = len(validate_submission(prediction.submission, prediction.sample)) // len(LABELS)
    if outcome["left"] != "predictions":
        reason = outcome["reason"]
        print(f"{prediction.submission} is valid, but still the training prior: {reason}")
        return {}
    score = prediction.score
    if prediction.run.metrics.exists():
        score = read_out_of_fold(prediction.run.metrics)
    print(f"{prediction.submission} is valid and holds the predictions.")
    print(f"Score: {'not known' if score is None else f'{score:.4f} held out'}")
    filled = prediction.filled
    print(f"{filled:,} of {images:,} images could not be read and were filled in.")
    return {"score": score, "filled": filled, "images": images}


def _run_on_gpus(*words: str, workers: bool = True) -> None:
    """Run a command in a process for each GPU; the processes share the cores for reading."""
    processes = launch.count_processes()
    share = ["--workers", str(count_cores())] if workers else []
    launch.run_command(*words, *share, processes=processes)


def _limit_hours(deadline: float) -> list[str]:
    return ["--hours", str(max(0.0, deadline - time.monotonic()) / 3600)]
