"""The LSTMs of a run, trained one after another, side by side, and by several processes."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import ROOT, copy_run
from safetensors.torch import load_file

from kit.embeddings import EmbeddingStore
from kit.runs import lstms
from kit.runs.directory import RunError, list_members, lock_part, read_recipe
from kit.runs.lstms import fit_lstms, is_training
from kit.runs.members import predict_slices
from kit.runs.tables import read_slices
from kit.training import loop


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


@pytest.fixture
def averaging(embedded):
    """The small run before its LSTMs, of three epochs, the weights of the last two averaged."""
    document = json.loads(embedded.config.read_text())
    document["recipe"] |= {"average_weights": True, "bag_lstm_epochs": 2}
    document["recipe"]["lstm"]["epochs"] = 3
    embedded.config.write_text(json.dumps(document))
    return embedded


def keep_epochs(run, monkeypatch) -> dict[str, dict]:
    """Train the folds; fold 0's weights of each epoch by their file's name."""
    kept: dict[str, dict] = {}
    add = lstms._add_to_mean

    def keep(directory, epoch, first):
        weights = load_file(directory / f"epoch{epoch}.safetensors")
        kept.setdefault(f"epoch{epoch}", weights)
        add(directory, epoch, first)

    monkeypatch.setattr(lstms, "_add_to_mean", keep)
    fit_lstms(run, [0, 1])
    return kept


def test_the_mean_of_the_last_epochs_weights_predicts_alone(averaging, monkeypatch):
    epochs = keep_epochs(averaging, monkeypatch)
    folder = averaging.lstm(0, 1)
    assert {path.name for path in folder.glob("*.safetensors")} == {"epoch3.safetensors"}
    assert {path.name for path in folder.glob("pred*")} == {"predictions3.parquet"}
    found = load_file(folder / "epoch3.safetensors")
    for name, value in found.items():
        expected = (epochs["epoch2"][name] + epochs["epoch3"][name]) / 2
        torch.testing.assert_close(value, expected)
    assert any((found[name] != epochs["epoch3"][name]).any() for name in found)
    slices = read_slices(averaging)
    slices = slices[~is_training(slices, 0)]
    store = EmbeddingStore(averaging.store(0, 1))
    expected = predict_slices(store, slices, folder / "epoch3.safetensors")
    written = pd.read_parquet(folder / "predictions3.parquet").set_index("SOPInstanceUID")
    pd.testing.assert_frame_equal(written, expected)
    assert next(iter(list_members(averaging, read_recipe(averaging)).values())) == [
        folder / "epoch3.safetensors"
    ]


def test_an_epoch_that_a_crash_had_trained_twice_counts_once(averaging, tmp_path, monkeypatch):
    whole = copy_run(averaging, tmp_path / "whole")
    fit_lstms(whole, [0])
    save = loop.checkpoints.save_checkpoint

    def crash(path, model, optimizer, state):
        if state.epoch == 4:  # epoch 3 is counted; that it is trained is not noted yet
            raise KeyboardInterrupt
        save(path, model, optimizer, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoints, "save_checkpoint", crash)
        with pytest.raises(KeyboardInterrupt):
            fit_lstms(averaging, [0])
    assert (averaging.lstm(0, 1) / "mean.safetensors").exists()
    fit_lstms(averaging, [0])
    name = "epoch3.safetensors"
    one, other = ((run.lstm(0, 1) / name).read_bytes() for run in (averaging, whole))
    assert one == other
