"""The LSTMs of a run, trained one after another, side by side, and by several processes."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, copy_run

from kit.runs import lstms
from kit.runs.directory import RunError, lock_part
from kit.runs.lstms import fit_lstms


@pytest.fixture
def embedded(small_run, tmp_path):
    """The small run before its LSTMs."""
    run = copy_run(small_run, tmp_path / "run")
    for fold in (0, 1):
        shutil.rmtree(run.lstm(fold, 1))
    return run


def start(*words) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def check_equal(run, expected) -> None:
    """The weights of all epochs and the predictions by them."""
    for fold in (0, 1):
        paths = sorted(expected.lstm(fold, 1).glob("epoch*.safetensors"))
        paths += sorted(expected.lstm(fold, 1).glob("predictions*.parquet"))
        assert len(paths) == 4
        for path in paths:
            assert (run.lstm(fold, 1) / path.name).read_bytes() == path.read_bytes()


def test_two_processes_at_once_train_what_one_trains(embedded, small_run):
    before = json.loads(embedded.timings.read_text())
    both = [start("kit", "train-lstm", embedded, "--fold", fold) for fold in (0, 1)]
    for process in both:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text.decode()
    check_equal(embedded, small_run)
    after = json.loads(embedded.timings.read_text())
    for fold in (0, 1):  # neither has overwritten what the other has noted
        name = f"fold{fold} LSTM"
        assert after[name]["seconds"] > before[name]["seconds"]


def test_each_of_torchruns_processes_trains_lstms_of_its_own(embedded, small_run):
    process = start("kit.cli.launch", 2, "train-lstm", embedded)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text.decode()
    check_equal(embedded, small_run)


@pytest.mark.parametrize(
    ("room", "number", "trained"), [(0, 0, [0, 1]), (0, 1, []), (1, 0, [0]), (1, 1, [1])]
)
def test_lstms_side_by_side_need_room_on_the_disk(
    embedded, small_run, monkeypatch, room, number, trained
):
    """Two at once take their checkpoints twice while they are replaced; else the first has all."""
    weights = (small_run.lstm(0, 1) / "epoch2.safetensors").stat().st_size
    # The checkpoints of two are there twice, of weights and two moments; and an epoch's weights.
    free = 2 * (6 + 1) * weights + (1 if room else -(1 << 16))
    monkeypatch.setattr(lstms.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(lstms, "rank", lambda: number)
    monkeypatch.setattr(lstms, "world_size", lambda: 2)
    fit_lstms(embedded, [0, 1])
    found = [fold for fold in (0, 1) if (embedded.lstm(fold, 1) / "history.json").exists()]
    assert found == trained


def test_a_second_process_on_the_same_lstm_is_refused(embedded):
    with (
        lock_part(embedded, embedded.lstm(0, 1)),
        pytest.raises(RunError, match=r"lstm/epoch1: another process is at work here"),
    ):
        fit_lstms(embedded, [0], [1])


def test_an_epoch_that_is_not_embedded_is_refused(embedded):
    with pytest.raises(RunError, match=r"embeds by classifier epochs \[1\], not by 2"):
        fit_lstms(embedded, [0], [2])
