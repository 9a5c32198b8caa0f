"""Speed and memory on a GPU: a table, and the hours of whole recipes. Without a GPU it says so.

    python benchmarks/gpu.py [--out TABLE.md] [--memory 15] [--minutes 5.5]

Rows come in the order of what they are worth; one that fails says so, and after `--minutes` the
rest are left out, which is said too. Without `--out` the table takes its place in RESULTS.md.

Extraction and training from files are the package's own functions with DICOM files of 512×512 and
reading processes. "On the device" means batches that are there already. What computes within
`--memory` GB, as a T4 has, takes its batch of 64 in parts. Rates are also given as a share of the
card's own float16 matrix rate. The hours at the end follow from the rates above them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import published
import samples
import torch
from torch import nn

from kit.classifier import Classifier, load_classifier, train_classifier
from kit.competition import LABELS
from kit.embeddings import extract_embeddings
from kit.embeddings.writer import StoreWriter
from kit.files import read_commit, read_json
from kit.images import SliceDataset, load_batches
from kit.lstm import SequenceLSTM, compute_loss, train_lstm
from kit.recipes import RECIPES, Recipe
from kit.sequences import SeriesDataset, collate_series
from kit.training import amp, tuning
from kit.training.checkpoints import save_weights
from kit.training.config import ClassifierConfig, LSTMConfig
from kit.training.inference import move_batch
from kit.training.loop import make_optimizer, weighted_loss
from kit.training.step import Stepper
from kit.training.tuning import Tuning, search_algorithms

IMAGES, TEST_IMAGES, SERIES = 752_803, 121_232, 21_744  # of the competition's stage 2
PLACE = Path(__file__).with_name("RESULTS.md")
MARKS = "<!-- gpu table -->", "<!-- end of gpu table -->"

# What a row may fail by: too little memory, a missing compiler, a changed function.
_FAILURES = (RuntimeError, OSError, ImportError, LookupError, TypeError, ValueError, AttributeError)


@dataclass
class Line:
    """One line of the table: items per second, operations per item, peak bytes, a remark."""

    rate: float
    unit: str
    operations: float = 0.0
    peak: int = 0
    note: str = ""


@dataclass
class Bench:
    """What is measured, how much of it, and where; `quick` amounts run anywhere in a minute."""

    device: torch.device
    folder: Path
    architecture: str = "resnext101_32x8d"
    image: int = 480
    smaller: tuple[int, ...] = (256, 384)
    batch: int = 64
    hidden: tuple[int, ...] = (2048, 1024)
    matrix: int = 8192
    steps: int = 10
    files: int = 8192
    workers: int = 16
    memory: float = 15.0
    lines: dict[str, Line] = field(default_factory=dict)

    @property
    def half(self) -> torch.dtype:
        """The half precision of the kit's O1."""
        return torch.float16 if self.device.type == "cuda" else torch.bfloat16


def quicken(bench: Bench) -> Bench:
    bench.architecture, bench.image, bench.smaller, bench.batch = "resnet10t", 32, (24,), 4
    bench.hidden, bench.matrix, bench.steps, bench.files, bench.workers = (16,), 64, 1, 24, 1
    return bench


def main(arguments: list[str] | None = None) -> None:
    """Measure and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the table's file (default: within RESULTS.md)")
    parser.add_argument("--memory", type=float, default=15.0, help="GB of the small card")
    parser.add_argument("--minutes", type=float, default=5.5, help="begin no row after this")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--commit", help="what is measured (default: what git says)")
    parser.add_argument("--quick", action="store_true", help="tiny amounts, on any device")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.quick:
        print("No GPU is at hand: nothing measured. Every other benchmark runs without one.")
        return
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    commit = options.commit or read_commit(PLACE.parent) or "unknown"
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(device, Path(scratch), memory=options.memory, workers=options.workers)
        bench = quicken(bench) if options.quick else bench
        title = f"{date.today()}, {describe(device)}, commit {commit[:10]}"
        text = title + "\n\n| work | rate | share of the matrix rate | peak memory |  |\n"
        text += "|---" * 5 + "|\n"
        for row in measure_rows(bench, time.monotonic() + 60 * options.minutes):
            print(row, flush=True)
            text += row + "\n"
            # As it stands: what comes later may be cut off.
            record(f"{text}\n{summarize(bench.lines)}\n", options.out)
    print(summarize(bench.lines))


def record(text: str, out: Path | None) -> None:
    """Write the table to `out`, or between the marks in RESULTS.md."""
    if out is not None:
        out.write_text(text, encoding="utf-8")
        return
    before, _, rest = PLACE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    whole = f"{before}{MARKS[0]}\n{text.rstrip()}\n{MARKS[1]}{after}"
    PLACE.write_text(whole, encoding="utf-8")


def measure_rows(bench: Bench, until: float) -> Iterator[str]:
    """Measure row after row; yield the lines of the table, also for what fails or is left out."""
    for work, measure in list_rows(bench).items():
        if time.monotonic() > until:
            yield f"| {work} | left out: the time is over | | | |"
            continue
        free_memory(bench.device)
        try:
            bench.lines[work] = measure()
        except _FAILURES as error:
            reason = str(error).partition("\n")[0].replace("|", "/")[:160]
            yield f"| {work} | failed: {type(error).__name__}: {reason} | | | |"
            continue
        yield format_line(work, bench)


def list_rows(bench: Bench) -> dict[str, Callable[[], Line]]:
    size, smaller = bench.image, bench.smaller
    rows: dict[str, Callable[[], Line]] = {"matrix product": lambda: measure_matrix(bench)}
    rows["reading files"] = lambda: measure_reading(bench)
    rows[f"extraction from files, {size} px, three views"] = lambda: measure_extraction(bench)
    rows[name_training(size)] = lambda: measure_training(bench, size, Tuning())
    rows[f"training from files, {size} px"] = lambda: measure_training_from_files(bench)
    for hidden in bench.hidden:
        rows[f"LSTM {hidden}"] = lambda hidden=hidden: measure_lstm(bench, hidden)
    rows[f"LSTM {bench.hidden[0]}, on the device"] = lambda: measure_lstm_on_device(
        bench, bench.hidden[0]
    )
    for small in smaller:
        rows[name_training(small)] = lambda small=small: measure_training(bench, small, Tuning())
    for side in (size, *smaller):
        rows[f"training within {bench.memory:g} GB, {side} px"] = lambda side=side: (
            measure_training(bench, side, Tuning(), limited=True)
        )
    for side in (size, *smaller):
        rows[f"forward pass, {side} px"] = lambda side=side: measure_forward(bench, side)
    if bench.device.type == "cuda":  # on a CPU it takes a C++ compiler and minutes
        rows[f"{name_training(size)}, compiled"] = lambda: measure_training(
            bench, size, Tuning(compiled=True)
        )
    rows[f"{name_training(size)}, contiguous"] = lambda: measure_training(
        bench, size, Tuning(channels_last=False)
    )
    rows["LSTM, reference implementation"] = lambda: measure_published_lstm(bench)
    rows[f"{name_training(size)}, reference (float32)"] = lambda: measure_training(
        bench, size, Tuning(channels_last=False), "O0"
    )
    return rows


def name_training(size: int) -> str:
    return f"training on the device, {size} px"


def format_line(work: str, bench: Bench) -> str:
    line, matrix = bench.lines[work], bench.lines["matrix product"].rate
    share = f"{line.rate * line.operations / matrix / 1e12:.1%}" if line.operations else ""
    memory = f"{line.peak / 1e9:.1f} GB" if line.peak else ""
    return f"| {work} | {line.rate:.1f} {line.unit} | {share} | {memory} | {line.note} |"


def describe(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, {card.total_memory / 1e9:.0f} GB, torch {torch.__version__}"


def free_memory(device: torch.device) -> None:
    """Free what the last row held, so that the next is measured on its own."""
    torch._dynamo.reset()  # otherwise it keeps the compiled model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def read_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def time_calls(work: Callable[[], object], device: torch.device, calls: int) -> float:
    """Seconds per call, after two calls to warm up."""
    for _ in range(2):
        work()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        work()
    wait()
    return (time.perf_counter() - started) / calls


@contextlib.contextmanager
def watch_calls(owner: type, name: str) -> Iterator[list[float]]:
    """The times at which a method returned, while the block lasts."""
    times: list[float] = []
    method = getattr(owner, name)

    def watched(*arguments, **options):
        result = method(*arguments, **options)
        times.append(time.perf_counter())
        return result

    setattr(owner, name, watched)
    try:
        yield times
    finally:
        setattr(owner, name, method)


def count_rate(times: list[float], items: int) -> float:
    """Items per second of calls of so many items, without the first quarter: readers start."""
    times = times[len(times) // 4 :]
    return items * (len(times) - 1) / (times[-1] - times[0])


def measure_matrix(bench: Bench) -> Line:
    """Operations per second of a large square matrix product."""
    left, right = (
        torch.randn(bench.matrix, bench.matrix, device=bench.device, dtype=bench.half) for _ in "ab"
    )
    seconds = time_calls(lambda: left @ right, bench.device, 20)
    return Line(2 * bench.matrix**3 / seconds / 1e12, "TFLOPS")


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

    rate = bench.batch / time_calls(forward, bench.device, bench.steps)
    return Line(rate, "views/s", operations, read_peak(bench.device))


def measure_training(
    bench: Bench, size: int, way: Tuning, opt_level: str = "O1", limited: bool = False
) -> Line:
    """A step of the classifier on a batch that is on the device, within the small card's memory."""
    classifier = make_classifier(bench, size)
    operations = 3 * count_operations(classifier)
    classifier.lay_out(way.layout)
    model: nn.Module = classifier.train()
    optimizer = make_optimizer(model, classifier.config)
    amp.initialize(model, optimizer, opt_level)
    if way.compiled:
        model = torch.compile(model)
    shape = (bench.batch, size, size, 3)
    batch = {
        "image": torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device),
        "labels": torch.randint(0, 2, (bench.batch, 6), device=bench.device).float(),
    }
    with hold_memory(bench if limited else None):
        stepper = Stepper(model, optimizer, compute_image_loss, bench.batch)
        with search_algorithms(way):
            seconds = time_calls(lambda: stepper.take(batch), bench.device, bench.steps)
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


def measure_lstm(bench: Bench, hidden: int) -> Line:
    """An epoch by the package's training, 4 series a step, from the memory-mapped embeddings."""
    embeddings, table = samples.make_series(16 * bench.steps, bench.hidden[0])
    series = SeriesDataset(embeddings, table, table["embidx"])
    config = LSTMConfig(hidden_size=hidden, embedding_size=bench.hidden[0], epochs=1)
    with watch_calls(Stepper, "take") as times:
        train_lstm(series, config, bench.folder / f"lstm{hidden}", bench.device)
    return describe_lstm(bench, hidden, count_rate(times, 4), len(table) / len(series))


def measure_lstm_on_device(bench: Bench, hidden: int) -> Line:
    """Steps on one batch of 4 series that is already on the device."""
    embeddings, table = samples.make_series(4, bench.hidden[0])
    dataset = SeriesDataset(embeddings, table, table["embidx"])
    config = LSTMConfig(embedding_size=bench.hidden[0], hidden_size=hidden)
    model = SequenceLSTM(config).to(bench.device).train()
    model, optimizer = amp.initialize(model, make_optimizer(model, config), "O1")
    stepper = Stepper(model, optimizer, compute_loss, 4)
    batch = collate_series([dataset[number] for number in range(4)])
    batch = {**move_batch(batch, bench.device), "mask": batch["mask"]}  # as training has it
    seconds = time_calls(lambda: stepper.take(batch), bench.device, 4 * bench.steps)
    return describe_lstm(bench, hidden, 4 / seconds, len(table) / len(dataset))


def describe_lstm(bench: Bench, hidden: int, rate: float, slices: float) -> Line:
    """A line of LSTM training: `rate` series a second of `slices` slices on average."""
    operations = 3 * slices * count_sequence_operations(hidden, bench.hidden[0])
    note = f"{4000 / rate:.1f} ms a step of 4 series"
    return Line(rate, "series/s", operations, read_peak(bench.device), note)


def count_sequence_operations(hidden: int, embedding: int) -> float:
    """Floating-point operations of the LSTM's forward pass for one slice."""
    layers = 2 * 4 * hidden * (3 * embedding + hidden) + 2 * 4 * hidden * (2 * hidden + hidden)
    skip = 0 if hidden == embedding else 2 * embedding * 2 * hidden
    return 2.0 * (layers + 2 * (2 * hidden) ** 2 + 2 * hidden * 6 + skip)


def measure_published_lstm(bench: Bench) -> Line:
    """A step of the reference in apex's O1, by torch's own AMP."""
    hidden = bench.hidden[0]
    embeddings, table = samples.make_series(4 * bench.steps, hidden)
    dataset = published.SeriesDataset(embeddings.astype(np.float32), table)
    model = published.make_lstm(hidden, hidden).to(bench.device).train()
    optimizer = published.make_optimizer(model)
    scaler = torch.amp.GradScaler(bench.device.type)
    # Mixed precision is measured on a GPU; many CPUs cannot run an `nn.LSTM` in bfloat16.
    mixed = torch.float16 if bench.device.type == "cuda" else None
    draw = itertools.cycle(np.arange(len(dataset)).reshape(-1, 4))

    def step() -> None:
        batch = published.load_batch(dataset, next(draw), bench.device)
        published.train_step(model, optimizer, batch, mixed, scaler)

    seconds = time_calls(step, bench.device, bench.steps)
    note = f"{1000 * seconds:.1f} ms a step of 4 series"
    return Line(4 / seconds, "series/s", peak=read_peak(bench.device), note=note)


def summarize(lines: dict[str, Line]) -> str:
    """The hours of whole recipes on this one card, where their rates were measured."""
    said = []
    for name in ("single", "tonight"):
        if name in RECIPES and (hours := count_hours(RECIPES[name], lines)):
            parts = ", ".join(f"{spent:.1f} h {stage}" for stage, spent in hours.items())
            size = RECIPES[name].classifier.image_size
            said.append(
                f"The recipe `{name}` at {size} px on this one card: {sum(hours.values()):.1f} h "
                f"({parts})."
            )
    return "\n".join(said) or "Too little was measured to tell the hours of a recipe."


def count_hours(recipe: Recipe, lines: dict[str, Line]) -> dict[str, float]:
    """Hours of each stage, or {} if a rate is missing. Rates of 480 px are scaled by the pixels."""
    size, hidden = recipe.classifier.image_size, recipe.lstm.hidden_size
    training = lines.get(name_training(size))
    views = lines.get("extraction from files, 480 px, three views")
    series = lines.get(f"LSTM {hidden}")
    if not (training and views and series):
        return {}
    models = max(1, len(recipe.train_folds))
    part = (recipe.folds - 1) / recipe.folds if recipe.train_folds else 1
    stores = models * recipe.bag_classifier_epochs
    each = 3 if recipe.classifier.test_augmentation else 1
    at_size = views.rate * (480 / size) ** 2
    return {
        "classifier": models * part * recipe.classifier.epochs * IMAGES / training.rate / 3600,
        "embeddings": stores * each * (IMAGES + TEST_IMAGES) / at_size / 3600,
        "LSTM": stores * part * recipe.lstm.epochs * SERIES / series.rate / 3600,
    }


if __name__ == "__main__":
    sys.exit(main())
