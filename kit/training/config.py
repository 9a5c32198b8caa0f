"""How a model is built and trained: dataclasses whose options are flags of the command line.

Nothing here needs torch: a mistake in a flag is told before that is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from kit import InputError


def option(default: Any, help: str) -> Any:
    """A dataclass field that is a flag of `kit run`, with its help text in the metadata."""
    return field(default=default, metadata={"help": help})


def _change_default(base: type, name: str, default: Any) -> Any:
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


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """The slice classifier and how it is trained, by default as the 2nd place trained it."""

    architecture: str = option(
        "resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "timm model with a pooled embedding"
    )
    architecture_options: dict = field(
        default_factory=dict, metadata={"help": "further arguments of the timm model, as JSON"}
    )
    weights: str = option(
        "", "initial weights: a .safetensors or .pth file, pretrained, or '' for random"
    )
    image_size: int = option(480, "side of the images in pixels")
    crop: bool = option(True, "crop to the head")
    repair: bool = option(True, "correct the wrong rescale intercept of 123 training files")
    augment: bool = option(True, "flip, shift, scale, rotate and transpose while training")
    prior_bias: bool = option(False, "start the head at the training prior")
    test_augmentation: bool = option(True, "average embeddings over identity, flip and transpose")


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(TrainingConfig):
    """The sequence model and how it is trained, by default as the 2nd place trained it.

    Its write-up and repository have two bidirectional layers of 2048 units over embeddings of 2048,
    Adam, a learning rate that falls by a factor of 0.95 per epoch, and 4 series per batch.
    """

    embedding_size: int = 2048  # the pipeline takes it from the embeddings
    hidden_size: int = option(2048, "LSTM units per direction")
    packed: bool = option(True, "no: the reference forward pass, where padding reaches the LSTM")
    deltas: bool = option(True, "append the differences to both neighbours to each embedding")
    embedding_dropout: float = option(0.0, "share of channels dropped for a whole series")
    standardize: bool = option(
        False, "scale embeddings by the standard deviation of the training part"
    )

    epochs: int = _change_default(TrainingConfig, "epochs", 12)
    learning_rate: float = _change_default(TrainingConfig, "learning_rate", 1e-5)
    schedule: str = _change_default(TrainingConfig, "schedule", "exponential")
    weight_decay: float = _change_default(TrainingConfig, "weight_decay", 0.01)
    batch_size: int = _change_default(TrainingConfig, "batch_size", 4)


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
