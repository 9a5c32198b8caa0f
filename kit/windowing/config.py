"""What a model sees of a slice; imports nothing heavy, as flags are read by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kit import InputError

# (center, width) in HU of the channels: brain, subdural, soft tissue. From the solution's
# code and write-up (2nd place, RSNA Intracranial Hemorrhage Detection, 2019).
WINDOWS = ((40, 80), (80, 200), (40, 380))

# Mean and standard deviation of the windowed training images, from the reference implementation;
# channels in the order of `WINDOWS`.
MEAN = (0.22363983, 0.18190407, 0.2523437)
STD = (0.32451536, 0.2956294, 0.31335256)

_FARTHEST = 16  # slices up or down that a model sees beside one


def _option(default: Any, help: str, allowed: tuple = ()) -> Any:
    """A field as `training.config.option` makes it, which is on a higher floor."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What a model sees of a slice, by default as the 2nd place's did.

    `mean` and `std` have a number per window, of values from 0 to 1 or, where `scale` is
    hounsfield, in HU.
    """

    image_size: int = _option(480, "side of the images in pixels", (8, 4096))
    crop: bool = _option(True, "crop to the head")
    repair: bool = _option(True, "correct the wrong rescale intercept of 123 training files")
    neighbours: tuple[int, ...] = _option(
        (0,), "slices seen together, in the order of channels: -1,0,1 is below, this one, above"
    )
    missing: str = _option(
        "zeros", "beyond the ends of a series: zeros, or edge for the last slice", ("zeros", "edge")
    )
    scale: str = _option(
        "uint8",
        "values within a window: uint8, unit (0 to 1) or hounsfield",
        ("uint8", "unit", "hounsfield"),
    )
    subtract_minimum: bool = _option(True, "lower each window by its own minimum over the slice")
    geometry: str = _option(
        "resize", "resize, or cut: the middle, padded with zeros", ("resize", "cut")
    )
    largest_cut: int = _option(
        640, "rows or columns above which cut resizes the whole frame instead", (8, 65536)
    )
    windows: tuple[tuple[int, ...], ...] = _option(WINDOWS, "center:width in HU, as 40:80,80:200")
    mean: tuple[float, ...] = _option(MEAN, "mean of each window, on the scale 0 to 1 or in HU")
    std: tuple[float, ...] = _option(STD, "standard deviation of each window")

    def __post_init__(self) -> None:
        offsets = set(self.neighbours)
        if 0 not in offsets or len(offsets) < len(self.neighbours):
            raise InputError(f"neighbours {self.neighbours} must hold 0, and no slice twice")
        if max(map(abs, offsets)) > _FARTHEST:
            raise InputError(f"neighbours {self.neighbours} are farther than {_FARTHEST} slices")
        if not 0 < len(self.windows) == len(self.mean) == len(self.std):
            raise InputError("windows, mean and std must have one entry per channel of a slice")
        if not all(len(w) == 2 and w[1] > 1 for w in self.windows) or min(self.std) <= 0:
            raise InputError("windows must be center and width, and each std more than zero")
        if self.crop and self.geometry != "resize":
            raise InputError(f"the geometry {self.geometry} does not go with crop")
        if self.scale == "hounsfield" and (self.crop or self.subtract_minimum):
            raise InputError("the scale hounsfield goes with neither crop nor subtract_minimum")

    @property
    def channels(self) -> int:
        """How many channels the model takes: slice by slice, in each window by window."""
        return len(self.neighbours) * len(self.windows)
