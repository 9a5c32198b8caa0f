"""Several processes started by `torchrun`: who this one is, its device, and what all agree on."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

from kit import KitError
from kit.processes.ending import describe_failure, note_ending

_BUCKET = 2**25  # numbers exchanged at once; 128 MiB in float32
_TAKE_DOWN_SECONDS = 20  # torchrun allows the others 30 more

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def choose_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def is_joined() -> bool:
    """Whether this process works together with others."""
    return distributed.is_initialized() and not _alone.get()


def rank() -> int:
    """The number of this process under `torchrun`; 0 without, and while it works alone."""
    return distributed.get_rank() if is_joined() else 0


def world_size() -> int:
    """How many processes `torchrun` started; 1 without, and while this one works alone."""
    return distributed.get_world_size() if is_joined() else 1


def wait_for_all() -> None:
    """Wait until every process of `torchrun` is here."""
    if is_joined():
        distributed.barrier()


@contextlib.contextmanager
def work_alone() -> Iterator[None]:
    """Let this process work as if it were the only one: each has work of its own."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextlib.contextmanager
def join_processes() -> Iterator[None]:
    """Join the processes that `torchrun` started, for as long as the context lasts.

    After an error this process ends within seconds even where the others wait for it in an
    exchange, and `torchrun` then ends them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(choose_device())
    # torch's optimizers import this, and its functions hold the group of that time as a default
    # argument for good. A gloo group that is held keeps its threads, and they abort a process that
    # ends while they let go of a gradient (https://github.com/pytorch/pytorch/issues/190489).
    importlib.import_module("torch.distributed.nn.functional")
    # The first process works alone for hours where it indexes or predicts: the others must wait.
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1)
    )
    try:
        yield
    except BaseException as error:
        # NCCL may wait here for the others, and they for this process.
        guard = threading.Timer(_TAKE_DOWN_SECONDS, _end_process, [error])
        guard.daemon = True
        guard.start()
        distributed.destroy_process_group()
        guard.cancel()
        raise
    distributed.destroy_process_group()


def _end_process(error: BaseException) -> None:
    """End this process as `error` would have, without waiting for anything."""
    code = 1
    if isinstance(error, KitError | OSError):
        code, reason = ending = describe_failure(error)
        if note_ending(ending):
            print(f"kit: {reason}\n", end="", file=sys.stderr, flush=True)
    else:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
    os._exit(code)


def all_have(mine: bool, device: torch.device) -> bool:
    """Whether something holds in every process."""
    if not is_joined():
        return mine
    least = torch.tensor(mine, dtype=torch.uint8, device=device)
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    return bool(least)


def all_agree(figures: list[float], device: torch.device) -> bool:
    """Whether every process has the same figures, to a millionth."""
    if not is_joined():
        return True
    least = torch.tensor(figures, dtype=torch.float64, device=device)
    most = least.clone()
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return torch.allclose(least, most, rtol=1e-6)


def add_figures(figures: torch.Tensor) -> None:
    """Replace figures by their sums over all processes, without waiting for the device."""
    if is_joined():
        distributed.all_reduce(figures)


def add_gradients(parameters: Iterable[torch.Tensor], share: torch.Tensor) -> None:
    """Replace every gradient by the sum over all processes of gradient times `share`.

    Not by `DistributedDataParallel`, which exchanges during the backward pass: here a process may
    go back when its memory is short, or have nothing in a step, while the others wait for it at
    one place alone. A parameter without a gradient counts as one of zero.
    """
    if not is_joined():
        return
    bucket: list[torch.Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) > _BUCKET:
            _add_bucket(bucket, share)
            bucket = []
    if bucket:
        _add_bucket(bucket, share)


def _add_bucket(gradients: list[torch.Tensor], share: torch.Tensor) -> None:
    joined = torch.cat([gradient.flatten() for gradient in gradients]) * share
    distributed.all_reduce(joined)
    parts = joined.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


def share_batches(batches: list[np.ndarray]) -> list[np.ndarray]:
    """This process's part of every batch; it is empty where there are more processes."""
    return [batch[rank() :: world_size()] for batch in batches]
