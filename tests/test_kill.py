"""A run killed at random moments ends in the same bytes as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from kit.run import Run
from kit.status import list_stages

FLAGS = ["--folds", "2", "--train-folds", "0,1", "--bag-lstm-epochs", "2"]
FLAGS += ["--classifier-epochs", "1", "--lstm-epochs", "2", "--lstm-hidden-size", "16"]
STAGES = 1 + 2 * 3 + 3  # the index; classifier, embeddings, LSTM of two folds; three files


def start(data, run):
    command = [sys.executable, "-m", "kit", "run", str(data), "--recipe", "demo", "--run", str(run)]
    return subprocess.Popen(
        [*command, *FLAGS, "--workers", "1", "--quiet"],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_stages(process, run, done: int) -> None:
    """Return when the process is at work and `done` stages are there, or when it has ended."""
    while process.poll() is None:
        begun = (run / ".lock").exists() and (run / "config.json").exists()
        if begun and STAGES - len(list_left(run)) >= done:
            return
        time.sleep(0.05)


def list_left(run) -> list[str]:
    return [name for name, state in list_stages(Run(run)) if state != "done"]


def kill_and_go_on(data, run, kills: int, seed: int) -> list[str]:
    """Kill the run `kills` times, spread over its stages; then let it end. The stages it was in.

    The stages are drawn, not the seconds: the test is the same on a slow machine and a fast one.
    """
    rng, stages = random.Random(seed), []
    for done in sorted(rng.randrange(STAGES) for _ in range(kills)):
        (run / ".lock").unlink(missing_ok=True)  # written anew once the next process is at work
        process = start(data, run)
        wait_for_stages(process, run, done)
        time.sleep(rng.choice((0, 0.3, 1.5)) * rng.random())  # short stages, too, are met
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        if process.returncode:
            stages.append((list_left(run) or ["complete"])[0])
    process = start(data, run)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors.decode()
    return stages


def test_a_run_killed_a_few_times_ends_in_the_same_bytes(small_run, small_data, tmp_path):
    stages = kill_and_go_on(small_data, tmp_path / "run", kills=3, seed=0)
    assert stages
    assert (tmp_path / "run" / "submission.csv").read_bytes() == small_run.submission.read_bytes()


@pytest.mark.slow
def test_runs_killed_many_times_end_in_the_same_bytes(small_run, small_data, tmp_path):
    stages = []
    for seed in range(1, 7):
        run = tmp_path / f"run{seed}"
        stages += kill_and_go_on(small_data, run, kills=8, seed=seed)
        assert (run / "submission.csv").read_bytes() == small_run.submission.read_bytes()
    assert len(stages) >= 25
    assert len(set(stages)) >= STAGES - 2  # the last two are over in a blink


def test_status_tells_what_is_done_and_what_is_left(small_run):
    states = dict(list_stages(small_run))
    assert states["index"] == states["fold 1 LSTM on epoch 1"] == states["report.html"] == "done"
    assert len(states) == STAGES
