"""Files of released weights, read without executing or unpickling anything in them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kit import InputError
from kit.files import hash_file, read_json
from kit.progress import log
from kit.training.checkpoints import check_file

SUMS = "checksums.json"

# What torch's unpickler raises for files that are damaged or hostile.
_MISREAD = (
    OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError,
    ArithmeticError, MemoryError, SyntaxError, pickle.UnpicklingError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file. Raises `InputError` naming it."""
    try:
        check_file(path)
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a .safetensors file that can be read ({error})") from error


def read_pickled(path: Path) -> dict:
    """What `torch.save` wrote of tensors, numbers, texts, lists and NumPy scalars.

    It is read by torch's own unpickler of weights, which builds these alone and calls nothing else
    that a file may name. Raises `InputError` naming the file.
    """
    try:
        check_file(path)
        with _allow_scalars():
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except _MISREAD as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not weights that can be read safely ({reason})") from error
    if not isinstance(saved, dict):
        raise InputError(f"{path}: holds no dictionary of weights")
    return saved


def _allow_scalars() -> Any:
    """Let torch's unpickler of weights also make NumPy scalars, in the block alone."""
    make = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed: list[Any] = [(make, name) for name in names]
    allowed += [np.dtype, *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "?"))]
    return torch.serialization.safe_globals(allowed)


def read_sums(path: Path) -> dict[str, tuple[int, str]]:
    """The size and SHA-256 of each file that `checksums.json` lists. Raises `InputError`."""
    try:
        return {
            str(entry["path"]): (int(entry["size_bytes"]), str(entry["sha256"]))
            for entry in read_json(path)
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of checksums ({error})") from error


def check_sums(folder: Path, files: list[Path]) -> None:
    """Check files of a release by its `checksums.json`; without one, log that they are not checked.

    Raises `InputError` naming a file that is not the released one, or is not listed.
    """
    path = folder / SUMS
    if not path.exists():
        log.warning("%s is missing: the files are taken as they are, not checked", path)
        return
    sums = read_sums(path)
    for file in files:
        name = file.relative_to(folder).as_posix()
        if name not in sums:
            raise InputError(f"{path}: does not list {name}")
        if (file.stat().st_size, hash_file(file)) != sums[name]:
            raise InputError(f"{file} is not the released file: its checksum is another")


def rename_tensors(
    path: Path, tensors: dict[str, Tensor], wanted: dict[str, Tensor], rename: Callable[[str], str]
) -> dict[str, Tensor]:
    """The tensors of a file by the kit's names and of their shapes, as `wanted`.

    `rename` turns a name of the kit's into the file's. Raises `InputError` naming the file and the
    first tensor that is missing, too many or of another shape, and with what the file's names
    begin.
    """
    begins = sorted({name.partition(".")[0] for name in tensors})
    met = f"its names begin with {', '.join(begins[:5])}{' …' if len(begins) > 5 else ''}"
    found, left = {}, dict(tensors)
    for own, value in wanted.items():
        name = rename(own)
        if name not in left and own.endswith("num_batches_tracked"):
            found[own] = value.new_zeros((), device="cpu")  # a count that no prediction needs
            continue
        if name not in left:
            raise InputError(f"{path}: holds no weights {name!r}; {met}")
        found[own] = left.pop(name)
        if found[own].shape != value.shape:
            shape, right = tuple(found[own].shape), tuple(value.shape)
            raise InputError(f"{path}: {name} is {shape}, not {right}")
    if left:
        raise InputError(f"{path}: holds {min(left)!r}, for which the model has no place; {met}")
    return found
