"""What a run will take on this machine: hours, gigabytes, bottlenecks; what fits a session.

The reckoning is plain: amounts of work, by the recipe, over measured rates.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from kit import InputError, progress
from kit.classifier import VALIDATION_SLICES
from kit.files import write_json
from kit.processes import choose_workers, count_cores
from kit.recipes import Recipe, from_dict, to_dict
from kit.runs.directory import (
    Run,
    list_folds,
    list_kept_epochs,
    list_lstm_epochs,
    read_document,
)
from kit.runs.rates import SERIES_SLICES, Rates, measure_rates
from kit.runs.room import PREDICTION_BYTES, STORE_BYTES, find_peak
from kit.slices.competition_files import find_competition

_SIZES = (256, 320, 384, 480)  # sides of images, in pixels, among which a plan compares
_SHARE = 0.9  # of the session, for which a size is chosen: the rest is for what is not measured
_SECONDS = 40  # of measuring; at most a hundredth of the session
_INDEX_BYTES = 120  # of a row of the slice table on the disk
_SUBMISSION_BYTES = 6 * 33  # of an image in submission.csv


@dataclass(frozen=True)
class Machine:
    """What computes and reads: `devices` GPUs, or one CPU on `threads` of its cores."""

    devices: int
    gpu: str  # its name; empty without one
    cores: int
    threads: int
    workers: int


@dataclass(frozen=True)
class StagePlan:
    """A stage, named as in `timings.json`: seconds, bytes it leaves, and what it waits for."""

    name: str
    seconds: float
    bytes: int
    bottleneck: str


@dataclass(frozen=True)
class Plan:
    """A run of `recipe` on so many images, and what it takes on `machine` at `rates`."""

    recipe: Recipe
    train_images: int
    test_images: int
    machine: Machine
    rates: Rates
    stages: list[StagePlan]

    @property
    def peak(self) -> int:
        """The most bytes that the run takes at a time, as `find_peak` has them."""
        every = self.train_images + self.test_images
        predicted = _count_held_out(self.recipe, self.train_images) + self.test_images
        return self.stages[0].bytes + find_peak(self.recipe, every, predicted, self.rates)

    @property
    def hours(self) -> float:
        return sum(stage.seconds for stage in self.stages) / 3600


def make_plan(
    data: Path, recipe: Recipe, hours: float, machine: Machine, auto: bool = False
) -> Plan:
    """Measure `machine`, which is this one, on the competition's `data`; reckon what a run takes.

    It is measured for a hundredth of a session of `hours`, at most 40 s, with models and files of
    the recipe's size. With `auto` the size is the largest of 256, 320, 384 and 480 px with which
    the run ends in nine tenths of `hours`, or else the smallest; each is measured in a quarter of
    the time. Raises as `find_competition` does, `InputError` for no hours, or where a model cannot
    be made.
    """
    if not 0 < hours < math.inf:
        raise InputError(f"hours is {hours:g}; it must be a number above 0")
    files, seconds = find_competition(data), min(_SECONDS, hours * 36)

    def measure(recipe: Recipe, seconds: float) -> Plan:
        rates = measure_rates(files.train + files.test, recipe, machine.workers, seconds)
        return reckon(recipe, len(files.train), len(files.test), machine, rates)

    if not auto:
        return measure(recipe, seconds)
    for size in reversed(_SIZES):
        resized = replace(recipe, classifier=replace(recipe.classifier, image_size=size))
        plan = measure(resized, seconds / len(_SIZES))
        if plan.hours <= _SHARE * hours:
            break
    return plan


def note_plan(
    run: Run,
    data: Path,
    recipe: Recipe,
    hours: float,
    machine: Machine,
    auto: bool = False,
) -> None:
    """Make the plan of a run that is to end within `hours`, write and announce it.

    A plan of an earlier session stays, if it was made on such a machine. A run that has begun keeps
    its image size. Raises as `make_plan`.
    """
    begun = run.config.exists()
    recipe = settle_size(run, recipe, auto and begun)
    if run.plan.exists() and read_document(run.plan).get("machine") == asdict(machine):
        return
    plan = make_plan(data, recipe, hours, machine, auto and not begun)
    document = describe_plan(plan, hours)
    write_json(run.plan, document)
    sessions, size = document["sessions"], plan.recipe.classifier.image_size
    progress.announce(
        f"plan: {plan.recipe.name} at {size} px takes about "
        f"{progress.format_duration(plan.hours * 3600)}, "
        f"{progress.format_count(sessions, 'session')} of {hours:g} h, and leaves "
        f"{document['bytes'] / 1e9:.1f} GB → {run.plan}"
    )


def settle_size(run: Run, recipe: Recipe, auto: bool) -> Recipe:
    """The recipe with the image size of the run or, where it has not begun, of its plan."""
    if not auto:
        return recipe
    document = read_document(run.config if run.config.exists() else run.plan, {"recipe": dict})
    found = from_dict(document["recipe"])
    size = found.classifier.image_size
    return replace(recipe, classifier=replace(recipe.classifier, image_size=size))


def find_machine(workers: int | None = None, processes: int | None = None) -> Machine:
    """What this machine has for a run of `processes`, one a GPU; by default of all its GPUs."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return Machine(
        devices=(processes or torch.cuda.device_count()) if gpu else 1,
        gpu=gpu,
        cores=count_cores(),
        threads=torch.get_num_threads(),
        workers=choose_workers(workers),
    )


def reckon(
    recipe: Recipe, train_images: int, test_images: int, machine: Machine, rates: Rates
) -> Plan:
    """Reckon every stage of a run. Several GPUs share images evenly; an LSTM is trained on one."""
    held_out = _count_held_out(recipe, train_images)
    every, predicted = train_images + test_images, held_out + test_images
    index = StagePlan("index", every / rates.headers, every * _INDEX_BYTES, "reading headers")
    stages = [index]
    for fold in list_folds(recipe):
        stages += [
            _plan_classifier(recipe, fold, train_images - held_out, held_out, machine, rates),
            _plan_embeddings(recipe, fold, every, machine, rates),
            _plan_lstm(recipe, fold, train_images - held_out, held_out, predicted, rates),
        ]
    written = predicted * len(list_folds(recipe)) * PREDICTION_BYTES
    written += test_images * _SUBMISSION_BYTES
    stages.append(StagePlan("ensemble, report", 0.0, written, ""))
    return Plan(recipe, train_images, test_images, machine, rates, stages)


def _count_held_out(recipe: Recipe, train_images: int) -> int:
    return round(train_images / recipe.folds) if recipe.train_folds else 0


def _plan_classifier(
    recipe: Recipe, fold: int | str, images: int, held_out: int, machine: Machine, rates: Rates
) -> StagePlan:
    config = recipe.classifier
    seconds, bottleneck = _overlap(1 / rates.training_images, 1 / rates.trained, machine)
    views = 3 if config.test_augmentation else 1
    check, _ = _overlap(1 / rates.images, 1 / (rates.embedded * views), machine)
    return StagePlan(
        f"fold{fold} classifier",
        config.epochs
        * (
            images * seconds
            + min(held_out, VALIDATION_SLICES) * check
            + (1 + bool(held_out)) * rates.reading_start
        ),
        len(list_kept_epochs(recipe)[0]) * rates.classifier_bytes,
        bottleneck,
    )


def _plan_embeddings(
    recipe: Recipe, fold: int | str, images: int, machine: Machine, rates: Rates
) -> StagePlan:
    seconds, bottleneck = _overlap(1 / rates.images, 1 / rates.embedded, machine)
    stores = recipe.bag_classifier_epochs
    return StagePlan(
        f"fold{fold} embeddings",
        stores * (images * seconds + rates.reading_start),
        images
        * (len(list_kept_epochs(recipe)[0]) * 2 * rates.embedding_size + stores * STORE_BYTES),
        bottleneck,
    )


def _plan_lstm(
    recipe: Recipe, fold: int | str, images: int, held_out: int, predicted: int, rates: Rates
) -> StagePlan:
    config = recipe.lstm
    steps = math.ceil(images / SERIES_SLICES / config.batch_size)
    members = len(list_lstm_epochs(recipe))
    forward = config.epochs * held_out + members * predicted
    seconds = config.epochs * steps * rates.lstm_step_seconds + forward / rates.lstm_slices
    stores, (kept, kept_by_lstm) = recipe.bag_classifier_epochs, list_kept_epochs(recipe)
    written = len(kept) * len(kept_by_lstm) * rates.lstm_bytes
    written += stores * members * predicted * PREDICTION_BYTES
    return StagePlan(f"fold{fold} LSTM", stores * seconds, written, "computing")


def _overlap(read: float, compute: float, machine: Machine) -> tuple[float, str]:
    """Seconds an image takes that is read, then computed on, while the next are read; the slower.

    On a CPU both want its cores: these have not less to do than both together.
    """
    if machine.gpu:
        compute /= machine.devices
        return max(read, compute), "reading" if read > compute else "computing"
    reading, computing = read * machine.workers, compute * machine.threads
    seconds = max(read, compute, (reading + computing) / machine.cores)
    return seconds, "reading" if reading > computing else "computing"


def resize(plan: Plan, size: int, epochs: int | None = None) -> Plan:
    """The plan with images of another size and other epochs of the classifier.

    Computing grows as the pixels do (measured from 256 to 480 px on a GPU, to 5 %); reading, most
    of which is decoding the file, stays.
    """
    recipe, rates = plan.recipe, plan.rates
    epochs = epochs or recipe.classifier.epochs
    recipe = replace(
        recipe,
        classifier=replace(recipe.classifier, image_size=size, epochs=epochs),
        bag_classifier_epochs=min(recipe.bag_classifier_epochs, epochs),
    )
    growth = (size / rates.image_size) ** 2
    rates = replace(
        rates,
        image_size=size,
        trained=rates.trained / growth,
        embedded=rates.embedded / growth,
    )
    return reckon(recipe, plan.train_images, plan.test_images, plan.machine, rates)


def compare_sizes(plan: Plan) -> dict[int, dict[int, float]]:
    """Hours of the whole run by image size and epochs of the classifier, extrapolated."""
    sizes = sorted({*_SIZES, plan.recipe.classifier.image_size})
    most = max(5, plan.recipe.classifier.epochs)
    return {
        size: {epochs: resize(plan, size, epochs).hours for epochs in range(1, most + 1)}
        for size in sizes
    }


def describe_plan(plan: Plan, hours: float) -> dict:
    """The plan as JSON: stages, totals, sessions of `hours`, rates, what else would fit."""
    devices = plan.machine.devices if plan.machine.gpu else 0
    return {
        "recipe": to_dict(plan.recipe),
        "images": {"train": plan.train_images, "test": plan.test_images},
        "machine": asdict(plan.machine),
        "rates": asdict(plan.rates),
        "stages": [
            {**asdict(stage), "gpu_hours": stage.seconds / 3600 * devices} for stage in plan.stages
        ],
        "hours": plan.hours,
        "gpu_hours": plan.hours * devices,
        "bytes": sum(stage.bytes for stage in plan.stages),
        "peak_bytes": plan.peak,
        "session_hours": hours,
        "sessions": math.ceil(plan.hours / hours),
        "hours_by_size_and_epochs": compare_sizes(plan),
    }
