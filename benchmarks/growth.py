"""How cost grows: the rows that work on an amount, at ×1, ×4, ×16 and ×64, as `growth.png`.

    python benchmarks/growth.py [--directory SCRATCH] [--sizes 1 4 16 64]

The plot shows the times of the kit and of the reference implementation, medians of three (`kit
predict`: one run). The dashed line is linear growth that ends at the kit's time for ×64. Where the
kit lies above it at small sizes, a part of the cost is constant; where it lies below, growth is
faster than linear. Models are smaller than the published ones where the amount requires it; each
panel says so.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import bench
import matplotlib
import rows

matplotlib.use("Agg")
from matplotlib import pyplot

# panel: (maker, amount at ×1)
PANELS = {
    "DICOM files → windows": (rows.make_window, 2),
    "DICOM files → 480 px images": (rows.make_crop, 2),
    "headers indexed, cold process": (rows.make_index, 80),
    "rows of the slice table": (rows.make_slices, 11_762),
    "series to draw 200 batches of 4 from": (rows.make_batch, 8),
    "series by the LSTM, hidden 256": (partial(rows.make_lstm_prediction, hidden=256), 8),
    "series in each of 3 training steps, hidden 256": (partial(rows.make_lstm_step, hidden=256), 1),
    "files embedded, ResNeXt-101 at 96 px": (partial(rows.make_extraction, size=96), 1),
    "slices by `kit predict`, full size": (rows.make_prediction, 1),
    "rows of a submission": (rows.make_submission, 11_364),
    "rows of 30 members bagged": (rows.make_bag, 11_364),
}
ROUNDS = 3
SLOW = "slices by `kit predict`, full size"  # once


def main() -> None:
    """Measure all panels and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="keeps the inputs for the next call")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "growth.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kit-growth") as scratch:
        directory = options.directory or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        seconds = {name: measure_panel(directory, name, options.sizes) for name in PANELS}
    draw(seconds, options.sizes, options.out)


def measure_panel(directory: Path, name: str, sizes: list[int]) -> dict[str, list[float]]:
    """Seconds of the kit and of the reference implementation at each size."""
    maker, amount = PANELS[name]
    seconds = {}
    for size in sizes:
        forms, rounds = ("published", "kit"), 1 if name == SLOW else ROUNDS
        _, times = bench.time_forms(maker, directory, amount * size, forms, rounds)
        for form, (wall, _) in times.items():
            seconds.setdefault(form, []).append(wall)
        shown = ", ".join(
            f"{form} {bench.format_seconds(wall)}" for form, (wall, _) in times.items()
        )
        print(f"{name}: {amount * size}: {shown}", flush=True)
    return seconds


def draw(seconds: dict, sizes: list[int], out: Path) -> None:
    """Draw one panel per row, with both axes logarithmic."""
    figure, axes = pyplot.subplots(3, 4, figsize=(15, 9), layout="constrained")
    for axis, (name, forms) in zip(axes.flat, seconds.items(), strict=False):
        amounts = [PANELS[name][1] * size for size in sizes]
        for form, label, colour in (
            ("published", "reference", "tab:gray"),
            ("kit", "kit", "tab:blue"),
        ):
            if form in forms:
                axis.loglog(amounts, forms[form], "o-", color=colour, label=label)
        linear = [forms["kit"][-1] * amount / amounts[-1] for amount in amounts]
        axis.loglog(amounts, linear, "--", color="tab:blue", alpha=0.4, label="linear")
        axis.set_xticks(amounts, [str(amount) for amount in amounts])
        axis.minorticks_off()
        axis.set(title=name, ylabel="seconds")
        axis.title.set_fontsize(10)
    for axis in axes.flat[len(seconds) :]:
        axis.axis("off")
    axes.flat[0].legend()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
