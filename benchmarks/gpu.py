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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch
from gpu_bench import Bench, Line, free_memory, measure_matrix, quicken
from gpu_images import (
    measure_extraction,
    measure_forward,
    measure_reading,
    measure_training,
    measure_training_from_files,
)
from gpu_series import measure_lstm, measure_lstm_on_device, measure_published_lstm

from kit.files import read_commit
from kit.recipes import RECIPES, Recipe
from kit.training.tuning import Tuning

IMAGES, TEST_IMAGES, SERIES = 752_803, 121_232, 21_744  # of the competition's stage 2
PLACE = Path(__file__).with_name("RESULTS.md")
MARKS = "<!-- gpu table -->", "<!-- end of gpu table -->"

# What a row may fail by: too little memory, a missing compiler, a changed function.
_FAILURES = (RuntimeError, OSError, ImportError, LookupError, TypeError, ValueError, AttributeError)


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


def summarize(lines: dict[str, Line]) -> str:
    """The hours of whole recipes on this one card, or the rates that they lack."""
    said = []
    for name in ("single", "tonight"):
        size = RECIPES[name].classifier.image_size
        hours = count_hours(RECIPES[name], lines)
        if isinstance(hours, str):
            said.append(f"The hours of the recipe `{name}` are unknown without: {hours}.")
            continue
        parts = ", ".join(f"{spent:.1f} h {stage}" for stage, spent in hours.items())
        said.append(
            f"The recipe `{name}` at {size} px on this one card: {sum(hours.values()):.1f} h "
            f"({parts})."
        )
    return "\n".join(said)


def count_hours(recipe: Recipe, lines: dict[str, Line]) -> dict[str, float] | str:
    """Hours of each stage, or the rates that were not measured. Views scale with the pixels."""
    size, hidden = recipe.classifier.image_size, recipe.lstm.hidden_size
    extraction = "extraction from files, 480 px, three views"
    needed = name_training(size), extraction, f"LSTM {hidden}"
    if missing := [work for work in needed if work not in lines]:
        return "; ".join(missing)
    training, views, series = (lines[work] for work in needed)
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
