"""Readers that are killed, too few open files, no shared memory: nothing is lost by any of them."""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY_FLAGS, TINY_NOTE
from failure_tries import note_tries

FLAGS = [*TINY_FLAGS, "--workers", "2"]  # the last one counts
HEAVY = 40  # descriptors, with which no run gets through


def start(command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def list_children(pid: int) -> list[int]:
    """The processes that one has started, but for what only keeps count of its resources."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return [one for one in found if "resource_tracker" not in read_command(one)]


def read_command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "resource_tracker"  # it has ended


def kill_a_reader(command, rng: random.Random) -> tuple[subprocess.Popen, str]:
    """Kill the first of the processes that are there at an instant of the run."""
    process, until = start(command), time.monotonic() + rng.uniform(0, 12)
    while process.poll() is None:
        children = list_children(process.pid)
        if time.monotonic() > until and children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(children), signal.SIGKILL)
            return process, "killed"
        time.sleep(0.01)
    return process, "none was there"


def leave_few_descriptors(command, rng: random.Random) -> tuple[subprocess.Popen, str]:
    few = rng.randrange(12, 90)

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))

    where = "fewer than 40" if few < HEAVY else "40 and more"
    return start(command, preexec_fn=limit), where


def take_shared_memory(command, rng: random.Random) -> tuple[subprocess.Popen, str]:
    """Give the run a `/dev/shm` of 64 kB, which fills at an instant of it."""
    seconds = rng.uniform(0, 8)
    script = "mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99; "
    script += f"(sleep {seconds}; head -c 99999 /dev/zero > /dev/shm/full) 2> /dev/null & "
    return start(["unshare", "-rm", "sh", "-c", script + 'exec "$@"', "sh", *command]), "filled"


SCARCITIES = {
    "a reader killed": kill_a_reader,
    "few descriptors": leave_few_descriptors,
    "/dev/shm full": take_shared_memory,
}


def read_end(process: subprocess.Popen) -> str:
    """What the run says in the end: nothing, or one sentence. It may not hang."""
    watch = threading.Timer(240, process.kill)
    watch.start()
    _, errors = process.communicate()
    watch.cancel()
    said = re.sub(TINY_NOTE, "", errors)
    assert process.returncode in (0, 1), errors
    if process.returncode:
        assert said.splitlines()[-1].startswith("kit: "), errors
    assert "Traceback" not in errors, errors
    return said


@pytest.mark.slow
@pytest.mark.parametrize("what", list(SCARCITIES))
def test_what_is_scarce_at_any_instant_costs_no_more_than_a_sentence(what, tiny, tmp_path):
    """25 times; whatever a run says, the same command then ends in the same bytes."""
    if what == "/dev/shm full" and shutil.which("unshare") is None:
        pytest.skip("a /dev/shm of its own needs unshare")
    rng, run = random.Random(what), tmp_path / "run"
    command = [sys.executable, "-m", "kit", "run", str(tiny / "data"), "--run", str(run), *FLAGS]
    for _ in range(25):
        process, where = SCARCITIES[what](command, rng)
        said = read_end(process)
        if process.returncode == 99:
            pytest.skip("mounting a /dev/shm of its own is not allowed here")
        ended = "a sentence" if process.returncode else "the end"
        again = start(command)
        read_end(again)
        alike = again.returncode == 0 and all(
            (run / name).read_bytes() == (tiny / "run" / name).read_bytes()
            for name in ("submission.csv", "oof.parquet", "slices.parquet")
        )
        note_tries(what, [f"{where}: {ended}"], alike)
        assert process.returncode == 0 or said
        shutil.rmtree(run)
