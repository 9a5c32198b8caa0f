"""Index and predict 20,000 phantom slices in one run, and plot resident memory over time.

    python benchmarks/load.py [--patients 650] [--out benchmarks/load.png]

A tiny model is first trained on 12 patients. Memory is the proportional set size (PSS) of `kit
predict` and its workers, sampled twice a second. The script fails if memory grows by more than 10 %
from the first quarter of the embedding to the last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KIT = [sys.executable, "-m", "kit"]
MODEL = ["--recipe", "demo", "--folds", "2", "--train-folds", "0", "--classifier-epochs", "1"]
MODEL += ["--classifier-image-size", "32", "--lstm-epochs", "1", "--bag-lstm-epochs", "1"]
MODEL += ["--lstm-hidden-size", "16"]
KIB = 1.024e-3  # in MB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=650)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("load.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        call("phantom", home / "small", "--patients", "12", "--size", "32")
        call("run", home / "small", "--run", home / "run", *MODEL, "--workers", "1")
        started = time.monotonic()
        call("phantom", home / "large", "--patients", options.patients, "--size", "32")
        print(f"phantom drawn in {time.monotonic() - started:.0f} s")
        out = home / "out" / "table.csv"
        arguments = ["predict", home / "large", "--run", home / "run", "--out", out]
        samples = watch([*KIT, *map(str, arguments), "--workers", "1", "--quiet"], out.parent)
        table = pd.read_csv(out)
        skipped = pd.read_csv(out.with_name("table.skipped.csv"))
    return report_growth(samples, len(table), len(skipped), options.out)


def call(*arguments) -> None:
    subprocess.run([*KIT, *map(str, arguments), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def watch(command: list[str], out: Path) -> pd.DataFrame:
    """Run `command`; twice a second, record the time in s, memory in MB and whether it embeds."""
    process, started, rows = subprocess.Popen(command), time.monotonic(), []
    while process.poll() is None:
        embeds = any(out.glob(".*.kit-work/1/*.part"))
        rows.append((time.monotonic() - started, measure_memory(process.pid), embeds))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"kit predict ended with {process.returncode}")
    return pd.DataFrame(rows[:-1], columns=["seconds", "memory", "embeds"])


def measure_memory(process: int) -> float:
    """Megabytes of a process and its children; shared pages are divided among their users."""
    kilobytes = 0
    for member in [process, *list_children(process)]:
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:  # ended in between
            continue
        kilobytes += int(text.partition("\nPss:")[2].split()[0]) if "\nPss:" in text else 0
    return kilobytes * KIB


def list_children(process: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in tasks.read_text().split()]
        except OSError:  # a thread that ended in between
            continue
        found += [number for child in children for number in (child, *list_children(child))]
    return found


def report_growth(samples: pd.DataFrame, slices: int, skipped: int, out: Path) -> int:
    """Plot the samples and print the growth; 1 if it exceeds 10 %, else 0."""
    embeds = samples[samples["embeds"]]
    first, *_, last = np.array_split(embeds["memory"].to_numpy(), 4)
    growth = np.median(last) / np.median(first) - 1
    seconds = samples["seconds"].iloc[-1]
    plt.figure(figsize=(7, 3.2))
    plt.plot(samples["seconds"], samples["memory"])
    plt.axvspan(*embeds["seconds"].iloc[[0, -1]], alpha=0.15, label="embedding")
    plt.ylim(bottom=0)
    plt.xlabel("seconds")
    plt.ylabel("memory, MB")
    plt.title(f"kit predict over {slices} slices")
    plt.legend(loc="lower right")
    plt.tight_layout()
    plt.savefig(out, dpi=100)
    print(f"{slices} slices predicted, {skipped} files skipped, in {seconds:.0f} s")
    print(f"peak {samples['memory'].max():.0f} MB; embedding: {np.median(first):.0f} MB in its")
    print(f"first quarter, {np.median(last):.0f} MB in its last ({growth:+.1%}); {out}")
    return int(growth > 0.1)


if __name__ == "__main__":
    sys.exit(main())
