"""Every command in the documentation's `console` blocks runs, on a phantom."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def read_commands(page) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["real-data.md", "own-scans.md"])
def test_every_command_of_a_page_runs(name, tmp_path):
    commands = read_commands(ROOT / "docs" / name)
    assert len(commands) >= 6
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "kit"
        done = subprocess.run(
            [sys.executable, "-m", "kit", *words, *(() if words[0] == "status" else ("--quiet",))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_command_that_is_mentioned_exists(page):
    from kit.__main__ import COMMANDS

    text = page.read_text(encoding="utf-8")
    mentioned = set(re.findall(r"(?:^|`|\s{4})kit ([a-z][a-z-]+)", text, re.MULTILINE))
    assert mentioned <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|\s{4})make ([a-z][a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_file_that_is_linked_exists(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
