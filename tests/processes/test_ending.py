"""The note of how a command failed."""

import os

import pytest

from kit import InputError
from kit.processes import ending
from kit.processes.ending import Ending, describe_death, describe_failure, note_ending, read_ending
from kit.training.loop import OutOfTime


@pytest.fixture
def note(tmp_path, monkeypatch):
    monkeypatch.setenv(ending.ENDING, str(tmp_path / "ending.json"))
    return tmp_path / "ending.json"


def test_the_first_failure_is_kept_and_others_are_told_apart(note):
    first = Ending(3, "stopped in time – Straße")
    assert read_ending(note) is None
    assert note_ending(first)
    assert not note_ending(first)  # as another process did
    assert note_ending(Ending(1, "the disk is full"))
    assert read_ending(note) == first
    assert os.listdir(note.parent) == [note.name]


def test_where_nothing_can_be_written_the_exit_code_tells(note, monkeypatch):
    monkeypatch.setenv(ending.ENDING, str(note / "no" / "folder"))
    assert note_ending(Ending(1, "no"))
    monkeypatch.delenv(ending.ENDING)
    assert note_ending(Ending(1, "no"))
    assert list(note.parent.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '["one", "two"]', "[1, 2, 3]"])
def test_what_is_no_note_is_none(text, note):
    note.write_text(text)
    assert read_ending(note) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("no\n such \x1bthing"), Ending(1, "no such \\x1bthing")),
        (OutOfTime("after step 1"), Ending(3, "after step 1")),
        (OSError(28, "No space left on device", "run/x"), Ending(1, "run/x: No space left on dev")),
        (OSError("no reason"), Ending(1, "no reason")),
    ],
)
def test_a_failure_has_its_code_and_one_safe_line(error, expected):
    found = describe_failure(error)
    assert found.code == expected.code
    assert found.reason.startswith(expected.reason)
    assert "\n" not in found.reason


def test_a_signal_is_named_with_its_likely_cause():
    assert describe_death("embed", 11) == Ending(1, "kit embed was killed by signal 11.")
    assert describe_death("embed", 9).reason.endswith("9: the memory was probably full.")
