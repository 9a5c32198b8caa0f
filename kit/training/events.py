"""TensorBoard events of a training, written where tensorboard is installed."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

from kit.files import replace_file


def write_events(directory: Path, entry: dict) -> None:
    """Write the figures of one epoch for TensorBoard, where it is installed.

    Each epoch has a file of its own, so that a run that was killed repeats none. Not by torch's
    `SummaryWriter`: it writes in a thread, which prints a traceback of its own on a full disk.
    Raises `OSError` naming the file.
    """
    if find_spec("tensorboard") is None:
        return
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    directory.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads the files of a folder in the order of their names.
    path = directory / f"events.out.tfevents.epoch{entry['epoch']:04d}"
    with replace_file(path) as part, open(part, "wb") as file:
        writer, now = RecordWriter(file), time.time()
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for name in entry.keys() - {"epoch"}:
            summary = scalar(name, entry[name])
            event = Event(wall_time=now, step=entry["epoch"], summary=summary)
            writer.write(event.SerializeToString())
