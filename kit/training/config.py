"""How a model is built and trained: dataclasses whose options are flags of the command line.

Nothing here needs torch: a mistake in a flag is told before that is loaded.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from kit import InputError
from kit.windowing.config import InputConfig

# What numbers in the options of a timm model may add up to, and how many values there may be: far
# more than any real model has, and too few for a small file to make one that is built for minutes.
_LARGEST_OPTIONS, _MOST_OPTIONS = 100_000, 1000

_KINDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text",
    dict: "a JSON object", tuple[int, ...]: "whole numbers", tuple[float, ...]: "numbers",
}  # fmt: skip


def option(default: Any, help: str, allowed: tuple = ()) -> Any:
    """A dataclass field that is a flag of `kit run`: its help text, and what it may be.

    `allowed` has the choices of a text, or the least and the greatest value of a number.
    """
    return field(default=default, metadata={"help": help, "allowed": allowed})


def _change_default(base: type, name: str, default: Any) -> Any:
    """The option `name` of the dataclass `base` with another default, for a subclass."""
    (inherited,) = (entry for entry in fields(base) if entry.name == name)
    return field(default=default, metadata=inherited.metadata)


def check_options(config: Any) -> None:
    """Check each field of a dataclass of options, perhaps a stranger's, for type and range.

    Lists, which JSON makes of tuples, become tuples. Raises `InputError` naming the first that
    cannot be.
    """
    types = get_type_hints(type(config))
    for entry in fields(config):
        value, kind = _freeze(getattr(config, entry.name)), types[entry.name]
        object.__setattr__(config, entry.name, value)
        shown = f"{entry.name} is {reprlib.repr(value)}"
        if not _is_kind(value, kind):
            needed = _KINDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
            raise InputError(f"{shown}; it must be {needed}")
        allowed = entry.metadata.get("allowed", ())
        if kind is str and allowed and value not in allowed:
            raise InputError(f"{entry.name} {reprlib.repr(value)} is none of {', '.join(allowed)}")
        if kind in (int, float) and allowed and not allowed[0] <= value <= allowed[1]:
            least, most = allowed
            raise InputError(
                f"{shown}; it must be at {f'least {least}' if value < least else f'most {most}'}"
            )


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _is_kind(value: Any, kind: Any) -> bool:
    if kind is float:
        return _is_kind(value, int) or (isinstance(value, float) and math.isfinite(value))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_kind(v, get_args(kind)[0]) for v in value)
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained; the configurations of the models extend it.

    A field made by `option` is a flag of `kit run`. The others are set by the program.
    """

    epochs: int = option(5, "passes over the training part", (1, 1000))
    batch_size: int = option(
        64, "examples per step, over all processes and the parts that fit a card", (1, 65536)
    )
    optimizer: str = option("adam", "adam or adamw", ("adam", "adamw"))
    learning_rate: float = option(2e-5, "highest rate of the schedule", (0, 100))
    schedule: str = option(
        "constant",
        "constant, exponential (per epoch) or one-cycle",
        ("constant", "exponential", "one-cycle"),
    )
    learning_rate_decay: float = option(
        0.95, "factor per epoch of the exponential schedule", (0, 1)
    )
    weight_decay: float = option(0.0, "applied to everything except biases", (0, 100))
    opt_level: str = option("O1", "apex's O0 (float32), O1, O2 or O3", ("O0", "O1", "O2", "O3"))
    precision: str = option(
        "float16", "half precision of O1 to O3 on a GPU", ("float16", "bfloat16")
    )
    # The pipeline derives it from the recipe's seed and the fold.
    seed: int = field(default=0, metadata={"allowed": (0, 2**63 - 1)})

    def __post_init__(self) -> None:
        check_options(self)

    def find_factor(self, name: str) -> float:
        """What multiplies the learning rate of the weights `name` of the model."""
        return 1.0

    @property
    def norm_limit(self) -> float:
        """The norm to which the gradients of a step are clipped; 0 where they are not."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(InputConfig, TrainingConfig):
    """The slice classifier, what it sees and how it is trained, by default as the 2nd place did."""

    architecture: str = option(
        "resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "timm model with a pooled embedding"
    )
    architecture_options: dict = field(
        default_factory=dict, metadata={"help": "further arguments of the timm model, as JSON"}
    )
    weights: str = option(
        "", "initial weights: a .safetensors or .pth file, pretrained, or '' for random"
    )
    embedding: str = option(
        "pooled",
        "pooled by timm, or pre_logits: the mean of what its head's convolution gives",
        ("pooled", "pre_logits"),
    )
    augment: bool = option(True, "flip, shift, scale, rotate and transpose while training")
    prior_bias: bool = option(False, "start the head at the training prior")
    recompute_activations: bool = option(
        False, "compute activations twice: less memory, a third more time"
    )
    test_augmentation: bool = option(True, "average embeddings over identity, flip and transpose")

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        InputConfig.__post_init__(self)
        if not _are_plausible(self.architecture_options):
            shown = reprlib.repr(self.architecture_options)
            raise InputError(f"architecture_options {shown} are larger than those of any model")


def _are_plausible(options: dict) -> bool:
    """Whether nested options are small enough for a real model's: values, their sum, nesting."""
    level: list[Any] = [options]
    numbers: list[float] = []
    for _ in range(5):
        numbers += [abs(value) for value in level if isinstance(value, int | float)]
        lists = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [item for values in lists if isinstance(values, list | tuple) for item in values]
        if len(level) > _MOST_OPTIONS:
            return False
    return not level and sum(numbers) <= _LARGEST_OPTIONS


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(TrainingConfig):
    """The sequence model and how it is trained, by default as the 2nd place trained it.

    Its write-up and repository have two bidirectional layers of 2048 units over embeddings of 2048,
    Adam, a learning rate that falls by a factor of 0.95 per epoch, and 4 series per batch.
    """

    # The pipeline takes it from the embeddings.
    embedding_size: int = field(default=2048, metadata={"allowed": (1, 65536)})
    model: str = option(
        "lstm", "lstm, or gru: two GRU layers, with the series pooled by attention", ("lstm", "gru")
    )
    hidden_size: int = option(2048, "units of a layer per direction", (1, 16384))
    packed: bool = option(True, "no: the reference forward pass, where padding reaches the LSTM")
    deltas: bool = option(True, "append the differences to both neighbours to each embedding")
    embedding_dropout: float = option(0.0, "share of channels dropped for a whole series", (0, 1))
    standardize: bool = option(
        False, "scale embeddings by the standard deviation of the training part"
    )

    longest_series: int = option(64, "slices of a series that a gru sees", (2, 65536))
    slice_share: tuple[float, ...] = option(
        (1.0,) * 6, "share of this model's logit in a slice's, by label; the classifier's the rest"
    )
    series_share: tuple[float, ...] = option((1.0,) * 6, "the same in a series', of a gru")

    epochs: int = _change_default(TrainingConfig, "epochs", 12)
    learning_rate: float = _change_default(TrainingConfig, "learning_rate", 1e-5)
    schedule: str = _change_default(TrainingConfig, "schedule", "exponential")
    batch_size: int = _change_default(TrainingConfig, "batch_size", 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("slice_share", "series_share"):
            shares = getattr(self, name)
            if len(shares) != 6 or not all(0 <= share <= 1 for share in shares):
                raise InputError(f"{name} {shares} must be six shares from 0 to 1")
        extra = self.deltas or self.standardize or self.embedding_dropout or not self.packed
        if self.model == "gru" and extra:
            raise InputError(
                "the model gru is packed and takes embeddings as they are: it goes without deltas, "
                "standardize and embedding_dropout (--no-lstm-deltas)"
            )


@dataclass(frozen=True, kw_only=True)
class JointConfig(TrainingConfig):
    """How classifier and sequence model are trained as one network, over whole series.

    Rates, schedule, batch size, gradient norm and the weight of the slice head are those of the
    trials that `kit.lstm.joint` describes.
    """

    sequence_learning_rate: float = option(1e-3, "highest rate of the sequence model", (1e-12, 100))
    slice_weight: float = option(
        0.5, "weight of the loss of the classifier's own logits beside the sequence model's", (0, 1)
    )
    normalization: str = option(
        "trained",
        "batch normalization: trained, or frozen, with the statistics that it begins with",
        ("trained", "frozen"),
    )
    freeze_classifier: bool = option(
        False, "train the sequence model alone, on embeddings of augmented slices"
    )
    from_backbone: bool = option(
        False, "begin as the recipe's classifier began, with a new sequence model"
    )
    gradient_norm: float = option(
        1.0, "norm that gradients are clipped to; 0: they are not", (0, 1e6)
    )
    slices_at_once: int = option(
        0,
        "slices that pass the classifier at once, for memory; normalization sees these together "
        "(0: 8 of 480 pixels a side, more of smaller ones)",
        (0, 65536),
    )
    augment: bool = option(True, "flip, shift, scale, rotate and transpose, alike for a series")

    batch_size: int = option(8, "series per step, over all processes", (1, 65536))
    optimizer: str = _change_default(TrainingConfig, "optimizer", "adamw")
    learning_rate: float = option(3e-4, "highest rate of the classifier", (1e-12, 100))
    schedule: str = _change_default(TrainingConfig, "schedule", "one-cycle")
    weight_decay: float = _change_default(TrainingConfig, "weight_decay", 0.01)  # AdamW's own

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_classifier and self.from_backbone:
            raise InputError(
                "freeze_classifier and from_backbone do not go together: the classifier would stay "
                "untrained"
            )

    def find_factor(self, name: str) -> float:
        sequence = name.startswith("sequence.")
        return self.sequence_learning_rate / self.learning_rate if sequence else 1.0

    @property
    def norm_limit(self) -> float:
        return self.gradient_norm


def learning_rate_at(config: TrainingConfig, epoch: int, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps` in epoch `epoch` (from 1)."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "exponential":
        return config.learning_rate * config.learning_rate_decay ** (epoch - 1)
    # One cycle: Smith & Topin, 2017, arXiv:1708.07120: warm up, anneal. The last step has a rate.
    done = ((epoch - 1) * steps + step) / (config.epochs * steps)
    if done < 0.3:
        return config.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * done / 0.3)) / 2)
    return config.learning_rate * (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2
