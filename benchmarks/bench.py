"""Speed and memory against the reference implementation and against a lower bound: one table.

    python benchmarks/bench.py [--rows NAME ...] [--quick] [--directory SCRATCH]

If a row has a reference implementation, the script first asserts that the results are equal. It
then times the kit, the reference and the lower bound in turn, each in its own process (the windows:
in one), round after round. The table shows medians of wall-clock time and, in parentheses, ratios
of CPU time, which other programs on the machine disturb less. The full table goes to
`benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import limits
import rows

from kit import progress

HERE = Path(__file__).parent

# name: (maker, amount in full, amount with --quick)
ROWS = {
    "window": (rows.make_window, 96, 4),
    "crop": (rows.make_crop, 96, 4),
    "index": (rows.make_index, 5000, 200),
    "slices": (rows.make_slices, 752_803, 5000),
    "batch": (rows.make_batch, 500, 20),
    "deltas": (partial(rows.make_batch, deltas=True), 500, 20),
    "lstm": (rows.make_lstm_prediction, 500, 8),
    "step": (rows.make_lstm_step, 4, 2),
    "embed": (rows.make_extraction, 24, 2),
    "predict": (rows.make_prediction, 36, 2),
    "submission": (rows.make_submission, 727_392, 6000),
    "bag": (rows.make_bag, 727_392, 6000),
    "memory-train": (limits.make_training_memory, 752_803, 2000),
    "memory-step": (limits.make_step_memory, 752_803, 2000),
    "memory-index": (limits.make_index_memory, 752_803, 2000),
    "open": (limits.make_opening, 752_803, 2000),
    "import": (limits.make_import, 1, 1),
    "help": (limits.make_help, 1, 1),
}
FORMS = ("published", "kit", "floor")  # reference implementation, kit, lower bound


def main() -> None:
    """Measure the selected rows and print the table; save it if it is complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="small amounts, three rounds")
    parser.add_argument("--directory", type=Path, help="keeps the inputs for the next call")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kit-bench") as scratch:
        directory = options.directory or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        started, lines = time.monotonic(), []
        print(format_head())
        for name in options.rows:
            lines.append(measure_row(directory, name, options.quick))
            print(lines[-1], flush=True)
        minutes = (time.monotonic() - started) / 60
    if not options.quick and options.rows == list(ROWS):
        write_results(lines, minutes)


def measure_row(directory: Path, name: str, quick: bool) -> str:
    """Check, time and format one row."""
    maker, full, small = ROWS[name]
    amount = small if quick else full
    call_alone(check_row, maker, directory, amount)
    row, times = time_forms(maker, directory, amount, rounds=3 if quick else None)
    peak = call_alone(measure_memory, maker, directory, amount) if row.memory else None
    return format_row(row, times, peak)


def start_process() -> ProcessPoolExecutor:
    """Start a new interpreter, whose memory no earlier work has shaped."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=begin)


def begin() -> None:
    """Prepare a new process: no progress bars, and the default start method for workers."""
    progress.quiet = True
    multiprocessing.set_start_method(None, force=True)


def call_alone(work: Callable, *arguments):
    """The result of a call in its own process."""
    with start_process() as process:
        return process.submit(work, *arguments).result()


def check_row(maker: Callable, directory: Path, amount: int) -> None:
    maker(directory, amount).check()


def time_forms(
    maker: Callable,
    directory: Path,
    amount: int,
    forms: Sequence[str] = FORMS,
    rounds: int | None = None,
) -> tuple[rows.Row, dict[str, tuple[float, float]]]:
    """The row, without its work, and the median seconds, (wall, CPU), of each form.

    Each form has its own process, unless the row is `together`. They take turns, because the
    machine's speed drifts: kit and lower bound, which differ least, follow each other, and every
    other round reverses the order.
    """
    with contextlib.ExitStack() as stack:
        processes, row = {}, None
        for form in forms:
            if row is None or not row.together:
                process = stack.enter_context(start_process())
                row = process.submit(keep_row, maker, directory, amount).result()
            processes[form] = process
        present = [form for form in forms if getattr(row, form)]
        measured = {form: [] for form in present}
        for _ in range(rounds or row.rounds):
            for form in present:
                measured[form].append(processes[form].submit(time_form, form).result())
            present.reverse()
    medians = {
        form: tuple(statistics.median(column) for column in zip(*values, strict=True))
        for form, values in measured.items()
    }
    return row, medians


def keep_row(maker: Callable, directory: Path, amount: int) -> rows.Row:
    """Make the row and keep its work in this process; return everything else."""
    global kept
    kept = maker(directory, amount)
    has = {form: getattr(kept, form) is not None for form in FORMS}
    return replace(kept, check=None, **has)


def time_form(form: str) -> tuple[float, float]:
    """Run one form of the kept row once: seconds, (wall, CPU)."""
    wall, processors = time.perf_counter(), processor_seconds()
    getattr(kept, form)()
    return time.perf_counter() - wall, processor_seconds() - processors


def processor_seconds() -> float:
    """CPU time of this process and of the children that it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def measure_memory(maker: Callable, directory: Path, amount: int) -> dict[str, int]:
    """Run the kit's form once: the peak of this process in bytes, and the peak before the work."""
    row = maker(directory, amount)
    before = peak_bytes()
    row.kit()
    return {"before": before, "peak": peak_bytes()}


def peak_bytes() -> int:
    """The largest resident size of this process so far.

    `getrusage` does not help: for a new process it includes the peak of the parent.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def format_head() -> str:
    ratios = ("reference / kit", "kit / lower bound")
    names = ("work", "kit", "reference", "lower bound", *ratios, "peak memory")
    return "\n".join(["| " + " | ".join(names) + " |", "|---" * len(names) + "|"])


def format_row(row: rows.Row, times: dict, peak: dict | None) -> str:
    """A line of the table; a value that misses its target is bold."""
    gigabytes = peak["peak"] / 1e9 - row.model if peak else None
    cells = [row.work, mark(format_seconds(times["kit"][0]), row.seconds, times["kit"][0])]
    for form in ("published", "floor"):
        cells.append(format_seconds(times[form][0]) if form in times else "")
    for form, target in (("published", row.faster), ("floor", row.above_floor)):
        if form not in times:
            cells.append("")
            continue
        pairs = list(zip(times[form], times["kit"], strict=True))
        wall, processors = [a / b if form == "published" else b / a for a, b in pairs]
        sign = "≥" if form == "published" else "≤"
        text = f"{wall:.2f} ({processors:.2f})"
        missed = target and (wall < target if sign == "≥" else wall > target)
        text = f"**{text}**" if missed else text
        cells.append(f"{text}, {sign} {target:.3g}" if target else text)
    cells.append(mark(f"{gigabytes:.2f} GB", row.memory, gigabytes) if peak else "")
    return "| " + " | ".join(cells) + " |"


def mark(text: str, limit: float | None, value: float) -> str:
    """The text with its limit, in bold if the value exceeds it."""
    if limit is None:
        return text
    return f"**{text}**, < {limit:g}" if value > limit else f"{text}, < {limit:g}"


def format_seconds(seconds: float) -> str:
    """Seconds or milliseconds with three significant digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def describe_machine() -> str:
    """Processor, cores, memory and versions, on which the figures depend."""
    import numpy
    import pandas
    import pydicom
    import torch

    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next(line.partition(": ")[2] for line in text.splitlines() if "model name" in line)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
    products = [flag for name, flag in flags.items() if name in text] or ["no bfloat16 products"]
    return (
        f"{os.cpu_count()} cores of {model} ({', '.join(products)}), {memory:.0f} GiB, "
        f"{platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"NumPy {numpy.__version__}, pandas {pandas.__version__}, pydicom {pydicom.__version__}"
    )


def write_results(lines: list[str], minutes: float) -> None:
    """Replace the table between the two marks in RESULTS.md; keep the rest of the page."""
    path = HERE / "RESULTS.md"
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    about = f"{date.today()}, {describe_machine()}. {minutes:.0f} minutes in all."
    table = "\n".join([about, "", format_head(), *lines])
    text = f"{before}<!-- table -->\n{table}\n<!-- end of table -->{after}"
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()
