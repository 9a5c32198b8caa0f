"""The command line in a process of its own, as tests call it."""

import subprocess
import sys

from conftest import ROOT


def kit(*arguments, **options):
    """Run `kit ARGUMENTS` and return the finished process with its output as text."""
    command = [sys.executable, "-m", "kit", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
