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

from kit.competition import LABELS, TRAINING_PRIOR, read_submission
from kit.files import write_json
from kit.kernels import launch
from kit.kernels.inputs import KernelError, find_data, find_marked, link_input, restore_run
from kit.processes import count_cores
from kit.progress import show_messages
from kit.recipes import format_flags
from kit.runs.directory import Run, RunError
from kit.runs.export import MANIFEST, check_export
from kit.runs.provenance import describe_provenance, read_provenance
from kit.slices.competition_files import SAMPLE_FILE, find_competition
from kit.submission import read_sample, validate_submission, write_submission
from kit.training.loop import OutOfTime

_OUTCOME = "outcome.json"  # how a notebook ended, read by `kit push-kernels`
BACKBONE = "backbone.safetensors"  # initial weights, in a dataset of their own
RUN = "run"  # the run directory in the output of a training notebook


@dataclass(frozen=True)
class Prediction:
    """The inputs of a prediction and the submission that it writes."""

    data: Path
    run: Run
    prior: np.ndarray  # (6,), of the training part by the manifest
    sample: Path
    submission: Path


def prepare_prediction(
    root: Path | None = None, submission: Path = Path("submission.csv")
) -> Prediction:
    """Find and check the inputs; first of all, write a valid submission of the training prior.

    Raises `KernelError` with one sentence that says what is missing and what to do.
    """
    show_messages()
    data = find_data(root)
    files = find_competition(data, train=False)
    if files.sample is None or not files.test:
        raise KernelError(
            f"{data} holds no {SAMPLE_FILE if files.test else 'test images'}: attach the whole "
            "competition."
        )
    _write_prior(files.sample, submission)
    weights = find_marked(MANIFEST, root)
    if len(weights) != 1:
        raise KernelError(
            f"{len(weights) or 'No'} sets of trained weights are attached: attach exactly one "
            f"dataset with {MANIFEST} in it; {submission} holds the training prior alone."
        )
    try:
        manifest = check_export(weights[0])
    except RunError as error:
        raise KernelError(f"{error}; {submission} holds the training prior alone.") from None
    prior = np.array([manifest["prior"][label] for label in LABELS])
    score = manifest["out_of_fold"]
    print(describe_provenance(read_provenance(Run(weights[0]))))
    print(f"Data:     {data}, {len(files.test):,} test files")
    print(f"Weights:  {weights[0]}, recipe {manifest['recipe']}, folds {manifest['folds']}")
    print(f"Score:    {'not known' if score is None else f'{score:.4f} out of fold'}")
    print(f"Machine:  {torch.cuda.device_count()} GPUs, {count_cores()} cores")
    print(f"{submission} holds the training prior until the prediction replaces it.")
    return Prediction(data, Run(weights[0]), prior, Path(files.sample), submission)


def predict(prediction: Prediction) -> None:
    """Predict the test part on every GPU; say which submission is left, and why."""
    files = ["--run", str(prediction.run), "--out", str(prediction.submission)]
    try:
        _run_on_gpus("predict-test", str(prediction.data), *files)
        left, reason = "predictions", ""
    except KernelError as error:
        left, reason = "training prior", str(error)
    validate_submission(prediction.submission, prediction.sample)
    write_json(prediction.submission.with_name(_OUTCOME), {"left": left, "reason": reason})
    if reason:
        print(f"{prediction.submission} is valid, but still the training prior: {reason}")
    else:
        print(f"{prediction.submission} is valid and holds the predictions.")


def tabulate_labels(prediction: Prediction) -> pd.DataFrame:
    """A check without a score: the mean probability of each label against the training prior."""
    wide = read_submission(prediction.submission)
    table = pd.DataFrame(
        {
            "mean": wide.mean(),
            "training prior": prediction.prior,
            "ratio": wide.mean() / prediction.prior,
            "lowest": wide.min(),
            "highest": wide.max(),
        }
    )
    filled = prediction.submission.with_name(f"{prediction.submission.stem}.filled.csv")
    count = len(pd.read_csv(filled)) if filled.exists() else len(wide)
    print(
        f"{len(wide) * len(LABELS):,} rows for {len(wide):,} images; {count:,} images could not "
        "be read and were filled in."
    )
    return table.round(4)


def show_slices(prediction: Prediction):
    """Draw the most probable slice of each label. Not a medical device."""
    from matplotlib import pyplot

    from kit.images import read_image
    from kit.windowing import InputConfig

    table = prediction.submission.with_suffix(".parquet")
    if not table.exists():
        print("There are no predictions to show.")
        return
    slices = pd.read_parquet(table).dropna(subset=list(LABELS))
    brain = InputConfig(image_size=512, crop=False)
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 8), layout="constrained")
    for axis, label in zip(axes.flat, LABELS, strict=True):
        row = slices.loc[slices[label].idxmax()]
        axis.imshow(read_image(row["path"], brain)[..., 0], cmap="gray")
        axis.set_title(f"{label} {row[label]:.3f}\n{row['SOPInstanceUID']}", fontsize=9)
        axis.axis("off")
    figure.suptitle("Most probable slice of each label, brain window. Not a medical device.")


def train_classifier(
    recipe: str, fold: int, hours: float, changes: dict | None = None, root: Path | None = None
) -> None:
    """Index the data, train one fold's classifier and embed every slice, within `hours`.

    Continues from the earlier output of this notebook if that is attached. `changes` are options
    of the recipe, named as by `recipes.list_options`.
    """
    show_messages()
    deadline = time.monotonic() + hours * 3600
    changes = {**(changes or {}), "train_folds": (fold,)}
    backbone = find_marked(BACKBONE, root)
    if backbone:
        changes["classifier.weights"] = str(link_input(backbone[0] / BACKBONE, BACKBONE))
    else:
        changes.setdefault("classifier.weights", "")  # there is no network to fetch them by
    print(f"Initial weights: {changes['classifier.weights'] or 'none attached, random ones'}")
    data, run = link_input(find_data(root), "competition"), Run(Path(RUN))
    restore_run(run, [folder / RUN for folder in find_marked(f"{RUN}/config.json", root)])
    flags = ["--run", str(run), "--recipe", recipe, *format_flags(changes)]
    with _leave_outcome("train-classifier", run, fold):
        launch.run_command("index", str(data), *flags)
        for command in ("train-classifier", "embed"):
            _run_on_gpus(command, str(run), "--fold", str(fold), *_limit_hours(deadline))


def train_lstm(fold: int, hours: float, root: Path | None = None) -> None:
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
    restore_run(run, embedded + earlier, ("embeddings", "classifier/checkpoint.safetensors"))
    # The embeddings are too large for the output of this notebook: read them in place.
    link = run.path / part
    link.symlink_to(embedded[0] / part)
    try:
        with _leave_outcome("train-lstm", run, fold):
            options = ["--fold", str(fold), *_limit_hours(deadline)]
            _run_on_gpus("train-lstm", str(run), *options, workers=False)
            launch.run_command("ensemble", str(run))
            launch.run_command("report", str(run))
    finally:
        link.unlink()
    if run.submission.exists():
        shutil.copyfile(run.submission, "submission.csv")


@contextlib.contextmanager
def _leave_outcome(stage: str, run: Run, fold: int) -> Iterator[None]:
    """Say and write down whether the commands of a training notebook came to their end."""
    left, reason = "finished", ""
    try:
        yield
        print(f"Fold {fold}: {stage} is finished; the run is in {run.path.absolute()}.")
    except OutOfTime as stop:
        left, reason = "unfinished", str(stop)
        print(f"{reason}. Push the notebook again: it continues from the output of this version.")
    write_json(Path(_OUTCOME), {"left": left, "reason": reason})


def _run_on_gpus(*words: str, workers: bool = True) -> None:
    """Run a command in a process for each GPU; the processes share the cores for reading."""
    processes = launch.count_processes()
    share = ["--workers", str(count_cores())] if workers else []
    launch.run_command(*words, *share, processes=processes)


def _limit_hours(deadline: float) -> list[str]:
    return ["--hours", str(max(0.0, deadline - time.monotonic()) / 3600)]


def _write_prior(sample: str, submission: Path) -> None:
    write_submission(pd.DataFrame(TRAINING_PRIOR, read_sample(sample)), submission, sample)
