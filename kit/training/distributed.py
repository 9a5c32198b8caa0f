"""Several processes started by `torchrun`: who this one is, its device, and what all agree on."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import torch
from torch import distributed, nn


def choose_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def rank() -> int:
    """The number of this process under `torchrun`; 0 without."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes `torchrun` started; 1 without."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait_for_all() -> None:
    """Wait until every process of `torchrun` is here."""
    if distributed.is_initialized():
        distributed.barrier()


@contextlib.contextmanager
def join_processes() -> Iterator[None]:
    """Join the processes that `torchrun` started, for as long as the context lasts."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(choose_device())
    # DDP imports this, and its functions hold the group of that time as a default argument for
    # good. A gloo group that is held keeps its threads, and they abort a process that ends while
    # they let go of a gradient (https://github.com/pytorch/pytorch/issues/190489).
    importlib.import_module("torch.distributed.nn.functional")
    # The first process works alone for hours where it indexes or predicts: the others must wait.
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1)
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def all_have(mine: bool, device: torch.device) -> bool:
    """Whether every process has a batch: gradients are exchanged by all or by none."""
    if not distributed.is_initialized():
        return mine
    least = torch.tensor(mine, dtype=torch.uint8, device=device)
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    return bool(least)


def is_past(deadline: float | None, device: torch.device) -> bool:
    """Whether the time is over, by the first process's clock: all must stop after the same step."""
    if deadline is None:
        return False
    past = torch.tensor(time.monotonic() > deadline, dtype=torch.uint8, device=device)
    if distributed.is_initialized():
        distributed.broadcast(past, 0)
    return bool(past)


def distribute_model(model: nn.Module) -> nn.Module:
    if not distributed.is_initialized():
        return model
    device = next(model.parameters()).device
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None
    )


def share_batches(batches: list[np.ndarray]) -> list[np.ndarray]:
    """This process's part of every batch; each process has a part, and all are of like size."""
    if not distributed.is_initialized():
        return batches
    size = world_size()
    return [batch[np.arange(rank(), max(len(batch), size), size) % len(batch)] for batch in batches]
