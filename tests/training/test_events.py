"""TensorBoard's events: what they hold, and a disk they do not fit on."""

import os

import pytest
from conftest import limit_files
from small_training import config, train

from kit.training.events import write_events


def test_tensorboard_gets_loss_rate_and_scale_of_every_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = train(tmp_path, config(schedule="exponential"))
    found = {}
    for path in sorted((tmp_path / "events").iterdir()):
        events = EventAccumulator(str(path)).Reload()
        for name in ("loss", "learning_rate", "loss_scale"):
            found.setdefault(name, []).extend(event.value for event in events.Scalars(name))
    for name, values in found.items():
        assert values == pytest.approx([entry[name] for entry in history])


def test_events_that_do_not_fit_name_their_file_and_are_written_later(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    entry = {"epoch": 12, "loss": 0.5, "score": 0.25}
    path = tmp_path / "events" / "events.out.tfevents.epoch0012"
    with limit_files(20), pytest.raises(OSError, match="File too large") as caught:
        write_events(path.parent, entry)
    assert caught.value.filename == str(path)
    assert os.listdir(path.parent) == []
    assert capfd.readouterr().err == ""
    write_events(path.parent, entry)
    assert os.listdir(path.parent) == [path.name]
