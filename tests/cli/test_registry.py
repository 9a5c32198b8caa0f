"""The registry of commands: how a function becomes `kit NAME`."""

import argparse
from pathlib import Path

import pytest

from kit.cli import evaluation, joint, kaggle, models, scans, stages
from kit.cli.commands import COMMANDS, main
from kit.cli.registry import RUN, WORKERS, Commands, Result, argument
from kit.runs.directory import Run


def test_a_decorated_function_is_the_command_of_its_name(monkeypatch, capsys):
    table, calls = Commands(), []
    hours = argument("--hours", type=float)

    @table.add("count", "count words", RUN, WORKERS, hours, argument("words", nargs="*"))
    def count(options: argparse.Namespace) -> Result:
        calls.append(options)
        return Result(f"{len(options.words)} words", len(options.words))

    assert table["count"].execute is count
    monkeypatch.setitem(COMMANDS, "count", table["count"])
    assert main(["count", "runs/a", "one", "two", "--hours", "0.5"]) == 0
    assert capsys.readouterr().out == "2 words\n"
    assert main(["count", "runs/a", "one", "--workers", "3", "--json"]) == 0
    assert capsys.readouterr().out == "1\n"
    assert [options.run for options in calls] == [Run(Path("runs/a"))] * 2
    assert [(options.hours, options.workers) for options in calls] == [(0.5, None), (None, 3)]
    with pytest.raises(SystemExit) as stop:
        main(["count", "runs/a", "--hours", "soon"])
    assert stop.value.code == 2


def test_no_two_rooms_have_a_command_of_the_same_name():
    rooms = (stages, joint, models, scans, kaggle, evaluation)
    names = [name for room in rooms for name in room.COMMANDS]
    assert sorted(names) == sorted(COMMANDS)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "soon"])
def test_a_time_that_never_ends_is_no_time(text, capsys):
    for words in (["submit", "s.csv", "--message", "m", "--timeout"], ["push-kernels", "--hours"]):
        with pytest.raises(SystemExit) as stop:
            main([*words[:-1], f"{words[-1]}={text}"])
        assert stop.value.code == 2
        assert text in capsys.readouterr().err
