"""What a training leaves on the disk: weights with their configuration, and checkpoints.

Everything is `.safetensors` or JSON: nothing is pickled. A file is written beside its place and
then renamed.
"""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kit import KitError
from kit.files import replace_file
from kit.training import amp

Config = TypeVar("Config")


class TrainingError(KitError, RuntimeError):
    """Training cannot go on; the text says where and why."""


@dataclass
class Progress:
    """Where a training stands: `step` steps of epoch `epoch` (from 1) are done."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)  # a dict an epoch: loss, learning_rate, …


def save_weights(path: Path, model: torch.nn.Module, **metadata) -> None:
    """Write the model's weights with its configuration beside them, in one step."""
    metadata = {"config": asdict(model.config), **metadata}
    save_tensors(path, model.state_dict(), metadata)


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Read (state dict, metadata) of a `.safetensors` file that `save_weights` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("kit", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path}: not a weights file that can be read ({error})") from error


def load_trained(path: Path, kind: type[Config]) -> tuple[dict[str, torch.Tensor], Config]:
    """The weights of a trained model and its configuration, of the dataclass `kind`.

    Raises `TrainingError` naming the file where it holds no such configuration, or weights that
    are not finite.
    """
    weights, metadata = load_weights(path)
    try:
        config = kind(**metadata["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: holds no {kind.__name__} ({error})") from error
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(f"{path}: the weights {name} are not finite")
    return weights, config


def fill_model(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Give a model the weights read from `path`, these very tensors where their types are its own.

    Raises `TrainingError` where they do not fit.
    """
    types = {name: value.dtype for name, value in model.state_dict().items()}
    weights = {name: value.to(types.get(name, value.dtype)) for name, value in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise TrainingError(f"{path}: its weights do not fit its configuration") from error


def save_checkpoint(path: Path, model, optimizer, state: Progress) -> None:
    """Write all that resuming needs: weights, master weights, optimizer, loss scale, position."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    saved = optimizer.state_dict()
    for number, entries in saved["state"].items():
        for name, value in entries.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    for number, (_, master) in enumerate(optimizer.amp.masters or ()):
        tensors[f"master.{number}"] = master.detach()
    save_tensors(path, tensors, {"progress": asdict(state), "amp": amp.state_dict(optimizer)})


def load_checkpoint(path: Path, model, optimizer) -> Progress:
    """Restore what `save_checkpoint` wrote; a new `Progress` where there is no such file."""
    if not path.exists():
        return Progress()
    tensors, metadata = load_weights(path)
    model.load_state_dict(_take(tensors, "model."))
    saved = optimizer.state_dict()
    for name, value in _take(tensors, "optimizer.").items():
        number, _, entry = name.partition(".")
        saved["state"].setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict(saved)
    with torch.no_grad():
        for number, (_, master) in enumerate(optimizer.amp.masters or ()):
            master.copy_(tensors[f"master.{number}"])
    amp.load_state_dict(optimizer, metadata["amp"])
    return Progress(**metadata["progress"])


def _take(tensors: dict, prefix: str) -> dict:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """Write named tensors, with metadata that `load_weights` gives back, in one step."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with replace_file(path) as part:
        try:
            save_file(tensors, part, metadata={"kit": json.dumps(metadata)})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))  # all it tells of a full disk
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code)) from error
