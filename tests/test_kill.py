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


def kill_and_go_on(data, run, kills: int, seed: int) -> set[str]:
    """Kill the run `kills` times while it works, then let it end; the stages it was killed in."""
    rng, stages = random.Random(seed), set()
    for _ in range(kills):
        process = start(data, run)
        time.sleep(rng.uniform(3, 12))
        ended = process.poll() is not None
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        if ended:
            assert process.returncode == 0, errors.decode()
            break
        if (run / "config.json").exists():
            left = [name for name, state in list_stages(Run(run)) if state != "done"]
            stages.add(left[0] if left else "complete")
    process = start(data, run)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors.decode()
    return stages


def test_a_run_killed_a_few_times_ends_in_the_same_bytes(small_run, small_data, tmp_path):
    stages = kill_and_go_on(small_data, tmp_path / "run", kills=3, seed=0)
    assert stages
    assert (tmp_path / "run" / "submission.csv").read_bytes() == small_run.submission.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_runs_killed_many_times_end_in_the_same_bytes(small_run, small_data, tmp_path, seed):
    kill_and_go_on(small_data, tmp_path / "run", kills=8, seed=seed)
    assert (tmp_path / "run" / "submission.csv").read_bytes() == small_run.submission.read_bytes()


def test_status_tells_what_is_done_and_what_is_left(small_run):
    states = dict(list_stages(small_run))
    assert states["index"] == states["fold 1 LSTM on epoch 1"] == states["report.html"] == "done"
    assert len(states) == 1 + 2 * 3 + 3
