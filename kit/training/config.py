"""How a model is trained: a dataclass whose options are flags of the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from kit import InputError


def option(default: Any, help: str) -> Any:
    """A dataclass field that is a flag of `kit run`, with its help text in the metadata."""
    return field(default=default, metadata={"help": help})


def change_default(base: type, name: str, default: Any) -> Any:
    """The option `name` of the dataclass `base` with another default, for a subclass."""
    (inherited,) = (entry for entry in fields(base) if entry.name == name)
    return field(default=default, metadata=inherited.metadata)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained; the configurations of the models extend it.

    A field made by `option` is a flag of `kit run`. The others are set by the program.
    """

    epochs: int = option(5, "passes over the training part")
    batch_size: int = option(64, "examples per step, over all processes")
    optimizer: str = option("adam", "adam or adamw")
    learning_rate: float = option(2e-5, "highest rate of the schedule")
    schedule: str = option("constant", "constant, exponential (per epoch) or one-cycle")
    learning_rate_decay: float = option(0.95, "factor per epoch of the exponential schedule")
    weight_decay: float = option(0.0, "applied to everything except biases")
    opt_level: str = option("O1", "apex's O0 (float32), O1, O2 or O3")
    seed: int = 0  # the pipeline derives it from the recipe's seed and the fold

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")


def learning_rate_at(config: TrainingConfig, epoch: int, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps` in epoch `epoch` (from 1)."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "exponential":
        return config.learning_rate * config.learning_rate_decay ** (epoch - 1)
    if config.schedule == "one-cycle":  # Smith & Topin, 2017, arXiv:1708.07120: warm up, anneal
        done = ((epoch - 1) * steps + step) / max(1, config.epochs * steps - 1)
        if done < 0.3:
            return config.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * done / 0.3)) / 2)
        return config.learning_rate * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
    raise InputError(f"schedule {config.schedule!r} is none of constant, exponential, one-cycle")
