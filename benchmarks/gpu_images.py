"""The rows of `gpu.py` about images: reading, extraction, the classifier's training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import samples
import torch
from gpu_bench import Bench, Line, count_rate, read_peak, watch_calls
from torch import nn

from kit.classifier import Classifier, load_classifier, train_classifier
from kit.competition import LABELS
from kit.embeddings import extract_embeddings
from kit.embeddings.writer import StoreWriter
from kit.files import read_json
from kit.images import SliceDataset, load_batches
from kit.training import amp, tuning
from kit.training.checkpoints import save_weights
from kit.training.config import ClassifierConfig
from kit.training.loop import weighted_loss
from kit.training.optimizer import make_optimizer
from kit.training.step import Stepper
from kit.training.tuning import Tuning, time_batches


def make_config(bench: Bench, size: int, **options) -> ClassifierConfig:
    return ClassifierConfig(architecture=bench.architecture, image_size=size, **options)


def make_classifier(bench: Bench, size: int) -> Classifier:
    torch.manual_seed(0)
    return Classifier(make_config(bench, size)).to(bench.device)


def count_operations(model: Classifier) -> float:
    """Floating-point operations of the forward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    size, device = model.config.image_size, model.mean.device
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return counter.get_total_flops()


def make_table(bench: Bench, files: int) -> pd.DataFrame:
    """So many full-size slices, few files in turn: they come from the system's cache."""
    paths = samples.write_slices(bench.folder, min(64, files))
    paths = (paths * (files // len(paths) + 1))[:files]
    table = pd.DataFrame({"path": paths, "SOPInstanceUID": samples.name_images(len(paths))})
    labels = np.random.default_rng(0).integers(0, 2, (files, len(LABELS)))
    return table.join(pd.DataFrame(labels, columns=list(LABELS)))


def measure_reading(bench: Bench) -> Line:
    """Images per second from files to batches, nothing computed."""
    table = make_table(bench, bench.files // 2)
    dataset = SliceDataset(table, make_config(bench, bench.image))
    rows = np.split(np.arange(len(table)), range(32, len(table), 32))
    times = [time.perf_counter() for _ in load_batches(dataset, rows, bench.workers)]
    rate = count_rate(times, 32) if len(times) > 4 else len(table)
    return Line(rate, "images/s", note=f"{bench.workers} processes")


def measure_extraction(bench: Bench) -> Line:
    """The package's extraction with all that a long one tries; bare batches are of its trials."""
    weights = bench.folder / "classifier.safetensors"
    save_weights(weights, make_classifier(bench, bench.image), epoch=1)
    operations = count_operations(load_classifier(weights).to(bench.device))
    batch = min(32, bench.batch)
    with watch_calls(StoreWriter, "write") as times, try_everything():
        store = extract_embeddings(
            make_table(bench, bench.files),
            weights,
            bench.folder / "store",
            bench.device,
            bench.workers,
            batch,
        )
    rate, notes = 3 * count_rate(times, batch), ""
    if speed := store.provenance.get("speed"):
        bare = {way: 3000 * batch / spent for way, spent in speed["milliseconds"].items()}
        notes = "; ".join(f"{way} {views:.0f} views/s" for way, views in bare.items())
        notes = f"{rate / bare[speed['way']]:.1%} of the bare batches ({notes})"
    return Line(rate, "views/s", operations, read_peak(bench.device), notes)


@contextlib.contextmanager
def try_everything() -> Iterator[None]:
    """Let a short stage try and compile what only a long one is worth."""
    worth = tuning.WORTH_TRIALS, tuning.WORTH_COMPILING
    tuning.WORTH_TRIALS = tuning.WORTH_COMPILING = 0.0
    try:
        yield
    finally:
        tuning.WORTH_TRIALS, tuning.WORTH_COMPILING = worth


def measure_forward(bench: Bench, size: int) -> Line:
    """One view to its embedding, as extraction computes it where it is not compiled."""
    model = make_classifier(bench, size)
    operations = count_operations(model)
    shape = (bench.batch, size, size, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)

    def forward() -> None:
        with torch.inference_mode(), amp.autocast(bench.device, "O1"):
            model.embed(images)

    rate = bench.batch / time_batches(forward, bench.device, bench.steps)
    return Line(rate, "views/s", operations, read_peak(bench.device))


def measure_training(
    bench: Bench, size: int, way: Tuning, opt_level: str = "O1", limited: bool = False
) -> Line:
    """A step of the classifier on a batch that is on the device, within the small card's memory."""
    model = make_classifier(bench, size)
    operations = 3 * count_operations(model)
    optimizer = make_optimizer(model.train(), model.config)
    amp.initialize(model, optimizer, opt_level)
    shape = (bench.batch, size, size, 3)
    batch = {
        "image": torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device),
        "labels": torch.randint(0, 2, (bench.batch, 6), device=bench.device).float(),
    }
    with hold_memory(bench if limited else None):
        stepper = Stepper(model, optimizer, compute_image_loss, bench.batch)
        stepper.set_way(way, batch)
        seconds = time_batches(lambda: stepper.take(batch), bench.device, bench.steps)
    note = f"{bench.batch} images, {stepper.at_once} at once"
    rate = bench.batch / seconds
    return Line(rate, "images/s", operations, read_peak(bench.device), note)


def compute_image_loss(model: nn.Module, batch: dict) -> torch.Tensor:
    return weighted_loss(model(batch["image"]), batch["labels"])


@contextlib.contextmanager
def hold_memory(bench: Bench | None) -> Iterator[None]:
    """Let the device give no more than `bench.memory` GB in the block."""
    if bench is None or bench.device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, bench.memory * 1e9 / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure_training_from_files(bench: Bench) -> Line:
    """An epoch by the package's training, in the way that a long one chooses."""
    files, folder = max(bench.files // 2, 3 * bench.batch), bench.folder / "trained"
    config = make_config(bench, bench.image, epochs=1, batch_size=bench.batch)
    with watch_calls(Stepper, "take") as times, try_everything():
        train_classifier(make_table(bench, files), config, folder, bench.device, bench.workers)
    rate, notes = count_rate(times, bench.batch), ""
    if (noted := folder / "speed.json").exists():
        speed = read_json(noted)
        bare = 1000 * bench.batch / speed["milliseconds"][speed["way"]]
        notes = f"{rate / bare:.1%} of bare steps without the optimizer ({speed['way']})"
    return Line(rate, "images/s", peak=read_peak(bench.device), note=notes)
