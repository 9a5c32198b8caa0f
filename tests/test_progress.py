"""Progress bars and messages: where they go, how wide they are, and silence."""

import pytest
from command_line import kit

from kit import progress


def test_progress_fits_80_columns_and_is_lines_in_a_log(small_run, small_data, tmp_path):
    done = kit("predict", small_data / "stage_2_test", "--run", small_run,
               "--out", tmp_path / "p.csv")  # fmt: skip
    lines = done.stderr.replace("\r", "").splitlines()
    assert any("100%" in line and "slices/s" in line for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.fixture
def own_log():
    """The logger of kit without handlers, and as it was afterwards."""
    handlers, level = progress.log.handlers[:], progress.log.level
    progress.log.handlers.clear()
    yield progress.log
    progress.log.handlers[:] = handlers
    progress.log.setLevel(level)


def test_messages_are_printed_once_and_warnings_on_stderr(own_log, capsys):
    progress.show_messages()
    progress.show_messages()
    own_log.info("read %d slices", 3)
    own_log.warning("one \x1b[2J is\r damaged")  # a file's name may be in it
    own_log.debug("not for people")
    captured = capsys.readouterr()
    assert captured.out == "read 3 slices\n"
    assert captured.err == "one \\x1b[2J is\\r damaged\n"


def test_a_bar_counts_what_was_done_before_and_yields_every_item(monkeypatch, capsys):
    monkeypatch.setattr(progress, "quiet", False)
    assert list(progress.track("abc", "reading", total=5, unit="slice", done=2)) == list("abc")
    lines = capsys.readouterr().err.replace("\r", "").splitlines()
    assert lines[0].startswith("reading:  40%")
    assert "2/5" in lines[0]
    assert "5/5" in [line for line in lines if line][-1]
    progress.announce("index → slices.parquet")
    assert capsys.readouterr().err == "index → slices.parquet\n"


def test_quiet_shows_no_bar_and_no_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "quiet", True)
    assert list(progress.track([1, 2], "reading")) == [1, 2]
    progress.announce("index → slices.parquet")
    assert capsys.readouterr() == ("", "")


def test_a_count_has_its_noun_in_the_right_number():
    counts = [progress.format_count(number, "file") for number in (0, 1, 2)]
    assert counts == ["0 files", "1 file", "2 files"]


def test_durations_are_read_at_a_glance():
    durations = [progress.format_duration(seconds) for seconds in (39.6, 89, 3570, 3571, 7800)]
    assert durations == ["40 s", "1 min", "1 h 0 min", "1 h 0 min", "2 h 10 min"]
