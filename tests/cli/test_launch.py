"""One command in two processes, ended with the command's own exit code."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from kit.cli import launch


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--version"], 0), (["submit"], 2)],  # 2, wrong usage: torchrun would make it 1
)
def test_the_exit_code_is_that_of_the_command(words, code):
    command = [sys.executable, "-m", "kit.cli.launch", "2", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == code, done.stderr
    if code == 0:
        assert done.stdout.count("kit ") == 2  # each of the two processes has said its version


def test_the_exit_code_is_that_of_the_first_failure(tmp_path, monkeypatch, capfd):
    """Not the highest: the second process stops in time because the first has failed."""
    program = tmp_path / "failing"
    note = 'echo "[1, \\"run: the disk is full\\"]" > "$KIT_ENDING"; sleep 1; exit 1'
    wait = 'until [ -e "$KIT_ENDING" ]; do sleep 0.01; done; exit 3'
    program.write_text(f'#!/bin/sh\nif [ "$RANK" = 1 ]; then {note}; fi\n{wait}\n')
    program.chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(program))
    monkeypatch.delenv("KIT_ENDING", raising=False)
    for _ in range(2):  # nothing of the first call is left for the second
        assert launch.main(["2", "embed", "run"]) == 1
        assert "KIT_ENDING" not in os.environ


def test_a_process_that_is_killed_is_told(tmp_path, monkeypatch, capsys):
    program = tmp_path / "killed"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(program))
    assert launch.main(["2", "embed", "run"]) == 1
    assert "kit: kit embed was killed by signal 9: the memory was probably full." in (
        capsys.readouterr().err
    )
