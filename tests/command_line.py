"""The command line in a process of its own, as tests call it."""

import subprocess
import sys

from conftest import ROOT


def kit(*arguments, **options):
    """Run `kit ARGUMENTS` and return the finished process with its output as text."""
    command = [sys.executable, "-m", "kit", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def check_told_at_once(words, code, said):
    """`kit WORDS` must end with `code` and say `said` without a second's worth of imports."""
    script = "import sys; from kit.cli.commands import main\n"
    script += "try: code = main(sys.argv[1:])\nexcept SystemExit as stop: code = stop.code\n"
    script += "print(code, sorted({'torch', 'pandas', 'timm', 'pydicom'} & set(sys.modules)))"
    command = [sys.executable, "-c", script, *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == f"{code} []\n", run.stderr
    assert said in run.stderr
