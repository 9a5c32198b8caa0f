"""A run killed at random moments ends in the same bytes as one that was left alone.

Ctrl-C at any moment ends it at once, with all its processes.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from failure_tries import note_tries

from kit.pipeline import list_stages
from kit.runs.directory import Run

FLAGS = ["--folds", "2", "--train-folds", "0,1", "--bag-lstm-epochs", "2"]
FLAGS += ["--classifier-epochs", "1", "--lstm-epochs", "2", "--lstm-hidden-size", "16"]
STAGES = 1 + 2 * 3 + 3  # the index; classifier, embeddings, LSTM of two folds; three files


def start(data, run):
    command = [sys.executable, "-m", "kit", "run", str(data), "--recipe", "demo", "--run", str(run)]
    return subprocess.Popen(
        [*command, *FLAGS, "--workers", "2", "--quiet"],
        cwd=ROOT,
        start_new_session=True,
        # A shell in the background may have this test, and so the run, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Should it abort, as was seen once in 50 times, the fault handler says in which thread.
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
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


def interrupt(data, run, done: int, seconds: float) -> str | None:
    """Press Ctrl-C so many seconds after `done` stages; the stage it met, None if there was none.

    A terminal sends it to every process. All must have ended soon after.
    """
    (run / ".lock").unlink(missing_ok=True)
    process = start(data, run)
    wait_for_stages(process, run, done)
    time.sleep(seconds)
    stage = (list_left(run) or ["complete"])[0]
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    # Python ends by the signal itself, which a shell calls 130 too, if it came while a module ran
    # a text as code.
    assert process.returncode in (0, 130, -signal.SIGINT), errors.decode()
    if process.returncode == 0:
        return None
    assert errors.decode().splitlines()[-1].startswith("kit: interrupted; the same command")
    until = time.monotonic() + 20
    while is_alive(process.pid):
        assert time.monotonic() < until, f"{stage}: processes are left"
        time.sleep(0.1)
    return stage


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("done", [0, 1])  # while headers are read, and while pixels are
def test_ctrl_c_ends_a_run_with_all_its_processes(small_data, tmp_path, done):
    assert interrupt(small_data, tmp_path / "run", done, 1.0 * done)


@pytest.mark.slow
def test_ctrl_c_at_many_moments_ends_every_stage(small_run, small_data, tmp_path):
    """At least 40 times: often while headers are read, where workers start, and in each stage.

    What was interrupted again and again ends in the bytes of a run that was left alone.
    """
    rng, stages = random.Random(2), []
    for number in range(120):
        run = tmp_path / (f"run{number}" if number % 3 == 0 else "run")
        if run.exists() and not list_left(run):
            shutil.rmtree(run)
        # Of those that go on, most get some stages further: on a slow machine, too, all are met.
        before = STAGES - len(list_left(run)) if (run / "config.json").exists() else 0
        done = 0 if number % 3 == 0 else before + rng.randrange(4)
        stage = interrupt(small_data, run, done, rng.random() * rng.choice((0.1, 1, 3)))
        if stage:
            note_tries("Ctrl-C", [stage], True)  # else `interrupt` has failed
            stages.append(stage)
        if len(stages) >= 40 and len(set(stages)) >= 6:
            break
    assert len(stages) >= 40
    assert len(set(stages)) >= 6
    process = start(small_data, tmp_path / "run")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors.decode()
    assert (tmp_path / "run" / "submission.csv").read_bytes() == small_run.submission.read_bytes()


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
        killed = kill_and_go_on(small_data, run, draws, rng)
        alike = (run / "submission.csv").read_bytes() == small_run.submission.read_bytes()
        note_tries("killed", killed, alike)
        stages += killed
        shutil.rmtree(run)
    assert len(stages) >= 25
    assert names <= set(stages)
