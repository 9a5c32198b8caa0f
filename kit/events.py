"""TensorBoard events of a training, written where tensorboard is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def write_events(directory: Path, entry: dict) -> None:
    """Add the figures of one epoch of a history as scalars, in a file of their own.

    A file an epoch: a run that was killed and goes on repeats none and loses none.
    """
    if find_spec("tensorboard") is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(directory, filename_suffix=f".epoch{entry['epoch']}") as writer:
        for name, value in entry.items():
            if name != "epoch":
                writer.add_scalar(name, value, entry["epoch"])
