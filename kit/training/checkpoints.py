"""What a training leaves on the disk: weights with their configuration, and checkpoints.

Everything is `.safetensors` or JSON; nothing is pickled. A file is written under another name and
then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kit import KitError
from kit.files import FileError, file_size, open_file, replace_file
from kit.training import amp

_Config = TypeVar("_Config")

_LARGEST_WEIGHTS = 1 << 35  # bytes; a checkpoint of the published LSTM has 4.3 GB

# What reading a broken or malicious file raises, and the types of what kit writes.
_MISREAD = (SafetensorError, OSError, ValueError, RuntimeError, LookupError, AttributeError,
            TypeError, RecursionError)  # fmt: skip
_TYPES = {f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64", "int64")}


class TrainingError(KitError, RuntimeError):
    """Training cannot go on; the text says where and why."""


@dataclass
class Progress:
    """Where a training stands: `step` steps of epoch `epoch` (from 1) are done."""

    epoch: int = 1
    step: int = 0
    losses: int = 0  # how many steps gave the losses in `loss_sum`
    loss_sum: float = 0.0
    seconds: float = 0.0
    at_once: int = 0  # examples that fit the card; 0 where that has not been found out
    history: list[dict] = field(default_factory=list)  # per epoch: loss, learning_rate, …


def save_weights(
    path: Path,
    model: torch.nn.Module,
    weights: dict[str, torch.Tensor] | None = None,
    **metadata,
) -> None:
    """Write the model's weights, or others of its names, with its configuration in the metadata."""
    config: Any = model.config
    weights = model.state_dict() if weights is None else weights
    save_tensors(path, weights, {"config": asdict(config), **metadata})


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Read (state dict, metadata) of a `.safetensors` file that `save_weights` wrote.

    Raises `OSError`, or `TrainingError` naming the file where it holds something else.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("kit", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except _MISREAD as error:
        raise TrainingError(f"{path}: not a weights file that can be read ({error})") from error
    strange = {str(value.dtype) for value in weights.values()} - _TYPES
    if strange or not isinstance(metadata, dict):
        raise TrainingError(f"{path}: not a weights file that kit wrote {sorted(strange) or ''}")
    return weights, metadata


def check_file(path: Path) -> None:
    """Raise `OSError` where `path` is no regular file (a pipe would wait for ever) or too large."""
    with open_file(path) as file:
        size = file_size(path, file)
    if size > _LARGEST_WEIGHTS:
        raise FileError(path, "larger than the weights of any model", f"{size / 1e9:.0f} GB")


def load_trained(path: Path, kind: type[_Config]) -> tuple[dict[str, torch.Tensor], _Config]:
    """Read the weights of a trained model and its configuration, a `kind`.

    Raises `TrainingError` naming the file if it holds no such configuration, or weights that are
    not finite.
    """
    weights, metadata = load_weights(path)
    try:
        config = kind(**metadata["config"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: holds no {kind.__name__} ({error})") from error
    check_finite(weights, str(path))
    return weights, config


def check_finite(weights: dict[str, torch.Tensor], where: str) -> None:
    """Raise `TrainingError` naming `where` and the first weights that are not finite."""
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(f"{where}: the weights {name} are not finite")


@contextlib.contextmanager
def limit_model(weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Break off the building of a model, in this thread, that `weights` cannot be those of.

    A small file whose configuration asks for a thousand layers would be at it for minutes. Raises
    `TrainingError` once the model has twice as many parameters, or twice as large ones: some are
    made to be replaced.
    """
    thread, tensors, numbers = threading.get_ident(), 0, 0
    most = 2 * sum(value.numel() for value in weights.values())

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        if parameter is None or threading.get_ident() != thread:
            return
        tensors, numbers = tensors + 1, numbers + parameter.numel()
        if tensors > 2 * len(weights) or numbers > most:
            raise TrainingError(f"its {len(weights)} weights are too few for its configuration")

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def fill_model(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights, read from `path`, into a model, without copying those of its types.

    Raises `TrainingError` if they do not fit.
    """
    types = {name: value.dtype for name, value in model.state_dict().items()}
    weights = {name: value.to(types.get(name, value.dtype)) for name, value in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise TrainingError(f"{path}: its weights do not fit its configuration") from error


def save_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Progress
) -> None:
    """Write what resuming needs: weights, master weights, optimizer, loss scale, progress."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    saved = optimizer.state_dict()
    for number, entries in saved["state"].items():
        for name, value in entries.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    for number, (_, master) in enumerate(amp.find_scaling(optimizer).masters):
        tensors[f"master.{number}"] = master.detach()
    save_tensors(path, tensors, {"progress": asdict(state), "amp": amp.state_dict(optimizer)})


def load_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Restore what `save_checkpoint` wrote; return a new `Progress` if there is no such file.

    Raises `TrainingError` naming a file that cannot be read.
    """
    if not path.exists():
        return Progress()
    tensors, metadata = load_weights(path)
    check_finite(tensors, str(path))
    try:
        model.load_state_dict(_take(tensors, "model."))
        saved = optimizer.state_dict()
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        for name, value in _take(tensors, "optimizer.").items():
            number, _, entry = name.partition(".")
            if value.ndim and value.shape != parameters[int(number)].shape:
                raise ValueError(f"{name} is {tuple(value.shape)}")
            if value.ndim:  # a fused optimizer takes its state only in the layout of the weights
                layout = torch.empty_like(parameters[int(number)], dtype=value.dtype, device="cpu")
                value = layout.copy_(value)
            saved["state"].setdefault(int(number), {})[entry] = value
        if len({frozenset(entries) for entries in saved["state"].values()}) > 1:
            raise ValueError("the optimizer's state is not complete")
        optimizer.load_state_dict(saved)
        with torch.no_grad():
            for number, (_, master) in enumerate(amp.find_scaling(optimizer).masters):
                master.copy_(tensors[f"master.{number}"].view(master.shape))
        amp.load_state_dict(optimizer, metadata["amp"])
        progress = metadata["progress"]
        # Before 0.3 every step of an epoch counted in its loss.
        return _check_progress(Progress(**{"losses": progress["step"], **progress}))
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise TrainingError(f"{path}: not a checkpoint of this training ({error})") from error


def _check_progress(state: Progress) -> Progress:
    """Return it, or raise `ValueError` where no training stood there."""
    whole = all(type(number) is int for number in (state.epoch, state.step, state.at_once))
    numbers = all(math.isfinite(number) for number in (state.loss_sum, state.seconds))
    listed = isinstance(state.history, list) and all(isinstance(e, dict) for e in state.history)
    if not (
        whole
        and numbers
        and listed
        and min(state.step, state.at_once) >= 0
        and len(state.history) == state.epoch - 1
    ):
        raise ValueError("its progress is not possible")
    return state


def _take(tensors: dict, prefix: str) -> dict:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """Write named tensors and the metadata that `load_weights` returns, as a whole or not at all.

    Raises `OSError` naming the file.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with replace_file(path) as part:
        try:
            save_file(tensors, part, metadata={"kit": json.dumps(metadata)})
        except SafetensorError as error:
            # It tells the reason in words alone. Writing as much again raises the system's error.
            with open(part, "wb") as file:
                for value in tensors.values():
                    file.write(bytes(value.nbytes))
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
