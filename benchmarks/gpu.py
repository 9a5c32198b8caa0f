"""Speed and memory on a GPU: one table. Without a GPU it says so and exits with 0.

    python benchmarks/gpu.py [--batch 32] [--workers 16] [--files 4096]

It measures classifier training and extraction with ResNeXt-101 32x8d at 480 px: the reference
implementation in float32 (for whose convolutions cards from Ampere on use TF32), the kit's O1 in
the plain and the channels-last layout (for extraction with fused normalization), and O1 compiled.
It compares extraction fed from DICOM files by worker processes with the bare forward pass, and an
epoch of the LSTM over as many series as the competition has with the reference implementation in
the same mixed precision; both load their data in the training process. Rates are also given as a
share of the card's own float16 matrix rate, which is measured first. A batch of training or of the
bare forward pass that does not fit is halved. The last lines give the hours that the whole of stage
2 would take on this card if its files are read as fast as it trains.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import published
import samples
import torch
from torch import nn

from kit.classifier import (
    Classifier,
    ClassifierConfig,
    load_classifier,
)
from kit.embeddings import extract_embeddings
from kit.lstm import LSTMConfig, SequenceLSTM, compute_loss
from kit.sequences import SeriesDataset, collate_series
from kit.training import amp
from kit.training.inference import fuse_normalization
from kit.training.loop import make_optimizer, weighted_loss
from kit.training.step import Stepper

IMAGES, TEST_IMAGES, SERIES = 752_803, 121_232, 21_744  # of the competition's stage 2


@dataclass
class Sizes:
    """How much is measured; the test of this script on a CPU uses small sizes."""

    image: int = 480
    batch: int = 32
    hidden: int = 2048
    architecture: str = "resnext101_32x8d"
    matrix: int = 8192
    steps: int = 20
    files: int = 4096
    workers: int = 16


@dataclass
class Line:
    """One line of the table: items per second, operations per item, peak bytes."""

    work: str
    rate: float
    unit: str
    operations: float = 0.0
    peak: int = 0
    batch: int = 0


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=Sizes.batch, help="images at once")
    parser.add_argument("--workers", type=int, default=Sizes.workers)
    parser.add_argument("--files", type=int, default=Sizes.files, help="DICOM files to embed")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # on any device
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("No GPU is at hand: nothing measured. Every other benchmark runs without one.")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = Sizes(batch=options.batch, workers=options.workers, files=options.files)
    if options.tiny:
        sizes = Sizes(32, 2, 16, "resnext50_32x4d", 64, 1, 4, 0)
    print(describe(device), "\n")
    print("| work | batch | rate | share of the matrix rate | peak memory |\n" + "|---" * 5 + "|")
    matrix = {}
    for dtype in (torch.bfloat16, half(device)):
        matrix[dtype] = measure_matrix_rate(device, sizes, dtype)
        name = str(dtype).removeprefix("torch.")
        print(f"| {name} matrix product | | {matrix[dtype] / 1e12:.1f} TFLOPS | | |", flush=True)
    lines = {}
    for measure in (measure_training, measure_forward, measure_extraction, measure_sequences):
        for line in measure(device, sizes):
            lines[line.work] = line
            print(format_line(line, matrix[half(device)]), flush=True)
    print("\n" + summarize(lines))


def format_line(line: Line, matrix: float) -> str:
    share = f"{line.rate * line.operations / matrix:.1%}" if line.operations else ""
    memory = f"{line.peak / 1e9:.2f} GB" if line.peak else ""
    rate = f"{line.rate:.1f} {line.unit}"
    return "| " + " | ".join([line.work, str(line.batch or ""), rate, share, memory]) + " |"


def describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory / 1e9:.0f} GB, torch {torch.__version__}"


def half(device: torch.device) -> torch.dtype:
    """The half precision of the kit's O1."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def time_calls(work, device: torch.device, calls: int) -> tuple[float, int]:
    """Seconds per call, after two warm-up calls, and the peak of the device's memory."""
    for _ in range(2):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - started) / calls
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def free_memory(device: torch.device) -> None:
    """Free what the last line held, so that the next is measured on its own."""
    torch._dynamo.reset()  # otherwise it keeps the compiled model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_batches(
    make_step: Callable[[int], Callable], device: torch.device, sizes: Sizes
) -> tuple[float, int, int]:
    """Items per second, peak bytes, and the batch, halved from `sizes.batch` until it fits."""
    batch = sizes.batch
    while True:
        try:
            seconds, peak = time_calls(make_step(batch), device, sizes.steps)
            return batch / seconds, peak, batch
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
        finally:
            free_memory(device)
        batch //= 2


def measure_matrix_rate(device: torch.device, sizes: Sizes, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product."""
    left, right = (
        torch.randn(sizes.matrix, sizes.matrix, device=device, dtype=dtype) for _ in "ab"
    )
    seconds, _ = time_calls(lambda: left @ right, device, 20)
    return 2 * sizes.matrix**3 / seconds


def make_classifier(device: torch.device, sizes: Sizes) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(architecture=sizes.architecture, image_size=sizes.image)
    return Classifier(config).to(device)


def count_operations(model: Classifier, device: torch.device, sizes: Sizes) -> float:
    """Floating-point operations of the forward pass of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, sizes.image, sizes.image, 3, dtype=torch.uint8, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return counter.get_total_flops()


# name: (opt level, channels last, compiled)
LAYOUTS = {
    "reference (float32)": ("O0", False, False),
    "O1, contiguous": ("O1", False, False),
    "O1, channels last": ("O1", True, False),
    "O1, channels last, compiled": ("O1", True, True),
}


def make_images(batch: int, channels_last: bool, device: torch.device, sizes: Sizes):
    """uint8 images as the kit's model takes them, or normalized and channels first as published."""
    if channels_last:
        shape = (batch, sizes.image, sizes.image, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    return torch.randn(batch, 3, sizes.image, sizes.image, device=device)


def lay_out(model: Classifier, channels_last: bool) -> nn.Module:
    """The kit's model, or its backbone and head in the plain layout."""
    if channels_last:
        return model
    return nn.Sequential(model.backbone.to(memory_format=torch.contiguous_format), model.head)


def measure_training(device: torch.device, sizes: Sizes):
    """A training step of the classifier on batches that are already on the device."""
    operations = 3 * count_operations(make_classifier(device, sizes), device, sizes)
    for name, (opt_level, channels_last, compiled) in LAYOUTS.items():

        def make_step(batch, opt_level=opt_level, channels_last=channels_last, compiled=compiled):
            classifier = make_classifier(device, sizes)
            model = lay_out(classifier, channels_last).train()
            optimizer = make_optimizer(model, classifier.config)
            model, optimizer = amp.initialize(model, optimizer, opt_level)
            forward = torch.compile(model) if compiled else model
            labels = torch.randint(0, 2, (batch, 6), device=device).float()
            data = {"image": make_images(batch, channels_last, device, sizes), "labels": labels}
            stepper = Stepper(forward, optimizer, compute_image_loss, batch)
            return lambda: stepper.take(data)

        rate, peak, batch = time_batches(make_step, device, sizes)
        yield Line(f"classifier training, {name}", rate, "images/s", operations, peak, batch)


def compute_image_loss(model, batch: dict) -> torch.Tensor:
    return weighted_loss(model(batch["image"]), batch["labels"])


def measure_forward(device: torch.device, sizes: Sizes):
    """The bare forward pass to the embedding, for one view."""
    operations = count_operations(make_classifier(device, sizes), device, sizes)
    for name, (level, channels_last, compiled) in LAYOUTS.items():

        def make_step(batch, level=level, channels_last=channels_last, compiled=compiled):
            model = make_classifier(device, sizes).eval()
            if channels_last:
                model.backbone = fuse_normalization(model.backbone)  # as extraction does
            embed = model.embed if channels_last else lay_out(model, False)[0]
            embed = torch.compile(embed) if compiled else embed
            images = make_images(batch, channels_last, device, sizes)

            def forward():
                with torch.inference_mode(), amp.autocast(device, level):
                    embed(images)

            return forward

        rate, peak, batch = time_batches(make_step, device, sizes)
        yield Line(f"bare forward pass, {name}", rate, "views/s", operations, peak, batch)


def measure_extraction(device: torch.device, sizes: Sizes):
    """From DICOM files to embeddings of three views; the reference reads the files three times."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        paths = samples.write_slices(directory, min(64, sizes.files))
        paths = (paths * (sizes.files // len(paths) + 1))[: sizes.files]
        table = pd.DataFrame({"path": paths, "SOPInstanceUID": samples.name_images(len(paths))})
        weights = samples.write_classifier(directory, sizes.image, sizes.architecture)
        operations = count_operations(load_classifier(weights).to(device), device, sizes)
        image, workers = sizes.image, sizes.workers

        def extract_published(batch: int):
            backbone = published.load_backbone(weights, sizes.architecture).to(device)
            published.extract_embeddings(backbone, paths, image, device, workers, batch)

        def extract(batch: int):
            extract_embeddings(table, weights, directory / f"{batch}", device, workers, batch)

        for name, work in (("reference (float32)", extract_published), ("O1", extract)):
            seconds, peak = time_once(lambda work=work: work(sizes.batch), device)
            rate = 3 * len(paths) / seconds
            yield Line(
                f"extraction from files, {name}", rate, "views/s", operations, peak, sizes.batch
            )


def time_once(work: Callable, device: torch.device) -> tuple[float, int]:
    """Seconds of one call and the peak of the device's memory."""
    free_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    work()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return time.perf_counter() - started, peak


def measure_sequences(device: torch.device, sizes: Sizes):
    """Series per second in training, 4 per batch from the host's memory, and the device's peak."""
    embeddings, table = samples.make_series(4 * sizes.steps, sizes.hidden)
    operations = 3 * count_sequence_operations(sizes.hidden) * len(table) / (4 * sizes.steps)
    for name, make_step in (
        ("LSTM training, reference (mixed)", make_published_step),
        ("LSTM training, O1", make_kit_step),
    ):
        step = make_step(embeddings, table, device, sizes)
        seconds, peak = time_calls(step, device, sizes.steps)
        yield Line(name, 4 / seconds, "series/s", operations, peak, 4)
        del step
        free_memory(device)


def count_sequence_operations(hidden: int) -> float:
    """Floating-point operations of the LSTM's forward pass for one slice, with E = H."""
    layers = 2 * 4 * hidden * (3 + 1) * hidden + 2 * 4 * hidden * (2 + 1) * hidden
    return 2.0 * (layers + 2 * (2 * hidden) ** 2 + 2 * hidden * 6)


def make_published_step(embeddings, table, device, sizes: Sizes):
    """A step of the reference in apex's O1, by torch's own AMP."""
    dataset = published.SeriesDataset(embeddings.astype(np.float32), table)
    model = published.make_lstm(sizes.hidden, sizes.hidden).to(device).train()
    optimizer, scaler = published.make_optimizer(model), torch.amp.GradScaler(device.type)

    # Mixed precision is measured on a GPU; many CPUs cannot run an `nn.LSTM` in bfloat16.
    mixed = torch.float16 if device.type == "cuda" else None
    draw = itertools.cycle(np.arange(len(dataset)).reshape(-1, 4))

    def step():
        batch = published.load_batch(dataset, next(draw), device)
        published.train_step(model, optimizer, batch, mixed, scaler)

    return step


def make_kit_step(embeddings, table, device, sizes: Sizes):
    """A step as `kit.lstm.train_lstm` makes it."""
    dataset = SeriesDataset(embeddings, table, table["embidx"])
    config = LSTMConfig(embedding_size=sizes.hidden, hidden_size=sizes.hidden)
    model = SequenceLSTM(config).to(device).train()
    model, optimizer = amp.initialize(model, make_optimizer(model, config), "O1")
    stepper = Stepper(model, optimizer, compute_loss, 4)
    draw = itertools.cycle(np.arange(len(dataset)).reshape(-1, 4))

    def step():
        stepper.take(collate_series([dataset[number] for number in next(draw)]))

    return step


def summarize(lines: dict[str, Line]) -> str:
    """Ratios, and the hours of the cheapest published route: 3 epochs, each with its own LSTM."""
    training = lines["classifier training, O1, channels last"].rate
    fed = lines["extraction from files, O1"].rate
    bare = lines["bare forward pass, O1, channels last"].rate
    ours, theirs = (lines[f"LSTM training, {name}"].rate for name in ("O1", "reference (mixed)"))
    hours = [
        3 * IMAGES / training / 3600,
        3 * (IMAGES + TEST_IMAGES) / fed / 3600,
        3 * 12 * SERIES / ours / 3600,
    ]
    return (
        f"Extraction fed from files reaches {fed / bare:.1%} of the bare forward pass.\n"
        f"An LSTM epoch of {SERIES} series: {SERIES / ours:.0f} s, "
        f"reference implementation {SERIES / theirs:.0f} s.\n"
        f"The whole of stage 2 by the recipe `single` on this one card, from these rates: "
        f"{sum(hours):.1f} h ({hours[0]:.1f} h classifier, {hours[1]:.1f} h embeddings, "
        f"{hours[2]:.1f} h LSTM); with three views {sum(hours) + 2 * hours[1]:.1f} h."
    )


if __name__ == "__main__":
    sys.exit(main())
