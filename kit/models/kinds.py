"""The released forms: what each wants to see, and where its tensors belong in the kit's models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kit import InputError
from kit.models.forms import find_form, list_ianpan
from kit.models.reading import check_sums, read_pickled, read_safetensors
from kit.training.config import ClassifierConfig, LSTMConfig


@dataclass
class Part:
    """A file of a release: its tensors, and how they become those of a model of the kit.

    `rename` turns a name of the kit's into the file's; `order` says where each of the kit's labels
    stands in the file's head, if they stand in another order.
    """

    path: Path
    config: Any
    tensors: dict[str, Tensor]
    rename: Callable[[str], str]
    order: list[int] | None = None


@dataclass(frozen=True)
class Release:
    """What a folder or file holds: classifiers, and perhaps the model over series."""

    classifiers: list[Part]
    sequence: Part | None = None


@dataclass(frozen=True)
class Kind:
    """A released form: what reads it."""

    read: Callable[[Path], Release]


# Slices in order, each between its neighbours, in three windows from −1 to 1; frames are cut, and
# only those above 640 pixels resized. Compared with the released values by a test.
IANPAN_CLASSIFIER = ClassifierConfig(
    architecture="maxvit_tiny_tf_512.in1k",
    embedding="pre_logits",
    image_size=512,
    crop=False,
    neighbours=(-1, 0, 1),
    scale="unit",
    subtract_minimum=False,
    geometry="cut",
    windows=((40, 80), (80, 200), (600, 2800)),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    test_augmentation=False,
    opt_level="O0",
    epochs=1,
)
IANPAN_SEQUENCE = LSTMConfig(
    model="gru",
    embedding_size=512,
    hidden_size=256,
    deltas=False,
    slice_share=(0.75, 0.75, 0.75, 0.75, 0.75, 1.0),
    series_share=(0.5, 0.25, 0.5, 1.0, 0.5, 0.5),
    opt_level="O0",
    epochs=1,
)

# The kit's windows in HU, not scaled; the whole frame.
_APPIAN = ClassifierConfig(
    image_size=512,
    crop=False,
    scale="hounsfield",
    subtract_minimum=False,
    mean=(13.197, 7.179, -78.954),
    std=(24.509, 55.063, 113.127),
    test_augmentation=False,
    opt_level="O0",
    epochs=1,
)
# Its labels: any, epidural, subdural, subarachnoid, intraventricular, intraparenchymal.
_APPIAN_ORDER = [1, 5, 4, 3, 2, 0]  # where each of the kit's labels stands in the file


def _read_ianpan(folder: Path) -> Release:
    classifier, sequence = list_ianpan(folder)
    for path in (classifier, sequence):
        if not path.is_file():
            raise InputError(f"{path} is missing: the release has {classifier} and {sequence}")
    check_sums(folder, [classifier, sequence])
    # `mil_pool` was trained with the model, which does not use it to predict.
    pooled = {
        name: value
        for name, value in read_safetensors(sequence).items()
        if not name.startswith("mil_pool.")
    }
    return Release(
        [Part(classifier, IANPAN_CLASSIFIER, read_safetensors(classifier), _name_ianpan)],
        Part(sequence, IANPAN_SEQUENCE, pooled, str),
    )


def _name_ianpan(name: str) -> str:
    return name.replace("head.", "linear.") if name.startswith("head.") else name


def _read_appian(path: Path) -> Release:
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no .pt file of a classifier")
    return Release([_read_appian_file(file) for file in files])


def _read_appian_file(path: Path) -> Part:
    weights = read_pickled(path).get("model")
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{path}: holds no weights under 'model'")
    # Of 50 layers the third stage has six blocks, of 101 it has 23.
    if any(name.startswith("layer3.6.") for name in weights):
        config = replace(_APPIAN, architecture="legacy_seresnext101_32x4d", image_size=480)
    else:
        config = replace(_APPIAN, architecture="legacy_seresnext50_32x4d")
    return Part(path, config, weights, _name_appian, _APPIAN_ORDER)


def _name_appian(name: str) -> str:
    part, _, own = name.partition(".")
    return f"last_linear.{own}" if part == "head" else own


KINDS = {"ianpan": Kind(_read_ianpan), "appian": Kind(_read_appian)}


def find_kind(path: Path, name: str | None = None) -> Kind:
    """The reader of the released form of a folder or file. Raises as `find_form`."""
    return KINDS[find_form(path, name)]
