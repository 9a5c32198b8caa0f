"""TensorBoard events of a training, written where tensorboard is installed."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

from kit.files import replace_file


def write_events(directory: Path, entry: dict) -> None:
    """Add the figures of one epoch of a history as scalars, in a file of their own.

    A file an epoch: a run that was killed and goes on repeats none and loses none. Raises `OSError`
    naming the file where it cannot be written.
    """
    if find_spec("tensorboard") is None:
        return
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    epoch, now = entry["epoch"], time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    for name, value in entry.items():
        if name != "epoch":
            events.append(Event(wall_time=now, step=epoch, summary=scalar(name, value)))
    directory.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads the files in the order of their names. Its own writer is a thread's, which
    # would end in a traceback of its own where the disk is full.
    path = directory / f"events.out.tfevents.epoch{epoch:04d}"
    with replace_file(path) as part, open(part, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
