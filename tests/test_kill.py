"""A run killed at random moments ends in the same bytes as one that was left alone."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from kit.pipeline import list_stages
from kit.runs.directory import Run

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


def kill_and_go_on(data, run, draws: list[int], rng: random.Random) -> list[str]:
    """Kill the run when so many stages are done, `draws` in turn; then let it end.

    Returns the stages it was killed in. They are drawn, not the seconds: the test is the same on a
    slow machine and a fast one.
    """
    stages = []
    for done in sorted(draws):
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
    rng = random.Random(0)
    draws = [rng.randrange(STAGES) for _ in range(3)]
    assert kill_and_go_on(small_data, tmp_path / "run", draws, rng)
    assert (tmp_path / "run" / "submission.csv").read_bytes() == small_run.submission.read_bytes()


@pytest.mark.slow
def test_runs_killed_many_times_end_in_the_same_bytes(small_run, small_data, tmp_path):
    """At least 25 kills, and one in every stage; the stages that were missed are drawn again."""
    order = [name for name, _ in list_stages(small_run)]
    names = set(order) - {"submission.csv"}  # written before metrics.json, in the same stage
    rng, stages = random.Random(1), []
    for number in range(12):
        missed = [place for place, name in enumerate(order) if name in names - set(stages)]
        if len(stages) >= 25 and not missed:
            break
        run = tmp_path / f"run{number}"
        draws = missed[:4] + [rng.randrange(STAGES) for _ in range(4)]
        stages += kill_and_go_on(small_data, run, draws, rng)
        assert (run / "submission.csv").read_bytes() == small_run.submission.read_bytes()
        shutil.rmtree(run)
    assert len(stages) >= 25
    assert names <= set(stages)
