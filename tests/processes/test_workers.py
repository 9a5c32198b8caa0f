"""Worker processes that are killed while they read: the work is taken up once, then refused."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from kit import images
from kit.classifier import ClassifierConfig, train_classifier
from kit.cli.commands import main
from kit.embeddings import extract_embeddings
from kit.phantom.write import write_phantom
from kit.processes import (
    WorkerError,
    choose_workers,
    limit_threads,
    reading,
    restart_once,
    shield_workers,
    workers,
)
from kit.recipes import SMALL_RESNEXT
from kit.slices import entries
from kit.slices.competition_files import index_competition

CPU = torch.device("cpu")
DIED = "kit: a worker process died; continuing from what is saved\n"
CONFIG = ClassifierConfig(
    architecture="resnext50_32x4d",
    architecture_options=SMALL_RESNEXT,
    image_size=32,
    crop=False,
    epochs=2,
    batch_size=16,
    learning_rate=1e-3,
)


@pytest.fixture(scope="module")
def slices(small_data):
    return index_competition(small_data, workers=1)[0].query("split == 'train'").head(96)


@pytest.fixture(scope="module")
def trained(slices, tmp_path_factory):
    """The classifier trained undisturbed."""
    directory = tmp_path_factory.mktemp("trained")
    train_classifier(slices, CONFIG, directory, CPU, 1)
    return directory


@pytest.fixture
def deaths(monkeypatch, slices, tmp_path):
    """Let the reading process be killed at the 50th slice, as often as the list has entries."""
    original, left = images.read_image, tmp_path / "left"
    parent, fatal = os.getpid(), slices["path"].iloc[50]

    def read_or_die(path, *arguments):
        if path == fatal and (times := int(left.read_text())):
            assert os.getpid() != parent
            left.write_text(str(times - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(path, *arguments)

    monkeypatch.setattr(images, "read_image", read_or_die)
    return left


def test_training_goes_on_after_a_worker_was_killed_to_the_same_bytes(
    slices, trained, deaths, tmp_path, caplog
):
    deaths.write_text("1")
    train_classifier(slices, CONFIG, tmp_path / "model", CPU, 1)
    assert deaths.read_text() == "0"
    assert DIED in caplog.text
    for name in ("epoch1.safetensors", "epoch2.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (trained / name).read_bytes()


def test_embedding_goes_on_after_a_worker_was_killed_and_stops_at_the_second_death(
    slices, trained, deaths, tmp_path, caplog
):
    weights = trained / "epoch2.safetensors"
    deaths.write_text("0")
    whole = extract_embeddings(slices, weights, tmp_path / "whole", CPU, 1)
    deaths.write_text("1")
    store = extract_embeddings(slices, weights, tmp_path / "once", CPU, 1)
    assert DIED in caplog.text
    np.testing.assert_array_equal(store.embeddings, whole.embeddings)
    deaths.write_text("2")
    with pytest.raises(WorkerError, match="the same command continues"):
        extract_embeddings(slices, weights, tmp_path / "twice", CPU, 1)
    assert not (tmp_path / "twice" / "store.json").exists()
    store = extract_embeddings(slices, weights, tmp_path / "twice", CPU, 1)
    np.testing.assert_array_equal(store.embeddings, whole.embeddings)
    np.testing.assert_array_equal(store.logits, whole.logits)


class Killer(threading.Thread):
    """Kills the first of the processes that joblib starts, or with `always` each of them."""

    def __init__(self, always: bool = False):
        super().__init__(daemon=True)
        self.always, self.killed, self.over = always, False, threading.Event()

    def run(self):
        while not self.over.wait(0.01) and (self.always or not self.killed):
            for pid in sorted(self.list_workers())[:1]:
                os.kill(pid, signal.SIGKILL)
                self.killed = True

    def list_workers(self) -> set[int]:
        children = " ".join(p.read_text() for p in Path("/proc/self/task").glob("*/children"))
        found = set()
        for pid in map(int, children.split()):
            with contextlib.suppress(OSError):
                if b"popen_loky" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(pid)
        return found

    def __enter__(self):
        get_reusable_executor().shutdown(wait=True)  # workers of earlier tests would be too quick
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


needs_proc = pytest.mark.skipif(
    not list(Path("/proc/self/task").glob("*/children")), reason="finding the workers needs /proc"
)


@needs_proc
def test_indexing_is_taken_up_after_a_worker_was_killed(small_data, caplog):
    expected = index_competition(small_data, workers=1)
    with Killer():
        found = index_competition(small_data, workers=2)
    assert DIED in caplog.text
    for table, wanted in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(table, wanted)


@needs_proc
def test_workers_that_die_again_and_again_end_a_command_in_one_sentence(
    small_data, tmp_path, capfd
):
    command = ["index", str(small_data), "--recipe", "demo", "--run", str(tmp_path / "run")]
    with Killer(always=True):
        assert main([*command, "--workers", "2", "--quiet"]) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("kit: a worker process died, as happens for want of memory")
    assert not (tmp_path / "run" / "slices.parquet").exists()
    assert main([*command, "--workers", "2", "--quiet"]) == 0


@needs_proc
def test_the_workers_that_read_headers_import_neither_pandas_nor_torch(small_data):
    get_reusable_executor().shutdown(wait=True)
    index_competition(small_data, workers=2)
    # By a builtin: a function of this module would bring this module's imports along.
    list_modules = joblib.delayed(eval)("sorted(__import__('sys').modules)", {})
    loaded = joblib.Parallel(2)([list_modules] * 8)
    assert all("pydicom" in modules for modules in loaded)
    assert not {"pandas", "torch"} & set().union(*loaded)


def list_modules() -> list[str]:

    return sorted(sys.modules)


def test_a_joblib_backend_that_the_caller_chose_reads_the_headers(small_data, monkeypatch):
    expected = index_competition(small_data, workers=1)
    threads = set()
    original = entries.read_entry

    def read_here(path):
        threads.add((os.getpid(), threading.get_ident()))
        return original(path)

    monkeypatch.setattr(entries, "read_entry", read_here)
    with joblib.parallel_config("threading", n_jobs=2):
        found = index_competition(small_data)
    assert {process for process, _ in threads} == {os.getpid()}
    assert threading.get_ident() not in {thread for _, thread in threads}
    for table, wanted in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(table, wanted)


@needs_proc
def test_a_phantom_is_drawn_anew_after_a_worker_was_killed(tmp_path, caplog):
    with Killer():
        write_phantom(tmp_path / "data", patients=3, size=32, workers=2)
    assert DIED in caplog.text
    write_phantom(tmp_path / "same", patients=3, size=32, workers=1)
    for path in (tmp_path / "same").rglob("*.*"):
        twin = tmp_path / "data" / path.relative_to(tmp_path / "same")
        assert path.read_bytes() == twin.read_bytes()


def test_other_errors_are_not_taken_for_a_death_nor_is_torchrun_restarted(monkeypatch):
    calls = []

    @restart_once
    def stage(text):
        calls.append(text)
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=r"^something else$"):
        stage("something else")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorkerError):
        stage("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("given", "ranks", "cores", "expected"),
    [
        (None, None, 4, 3),
        (None, "2", 4, 1),
        (None, "2", 16, 7),
        (None, "8", 4, 1),
        (6, None, 4, 6),
        (6, "2", 4, 3),
        (1, "2", 4, 1),
        (0, "2", 4, 0),
    ],
)
def test_the_processes_of_a_machine_share_its_workers(monkeypatch, given, ranks, cores, expected):
    monkeypatch.setattr(workers, "count_cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert choose_workers(given) == expected


def test_shielded_workers_never_hear_of_ctrl_c():
    press = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')"
    with shield_workers():
        done = subprocess.run([sys.executable, "-c", press], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


@pytest.mark.parametrize(
    "error", [WorkerError("died"), ImportError("half imported"), None], ids=["death", "other", "no"]
)
def test_an_interrupted_stage_neither_restarts_nor_ends_as_if_nothing_were(error):
    calls, handler = [], signal.getsignal(signal.SIGINT)

    @restart_once
    def stage():
        calls.append(1)
        with contextlib.suppress(KeyboardInterrupt):  # as a library's callback loses it
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(1)
        if error:
            raise error

    with pytest.raises(KeyboardInterrupt):
        stage()
    assert len(calls) == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_no_worker_beside_the_main_process_can_be_asked_for(small_data):
    expected = index_competition(small_data, workers=1)
    for table, wanted in zip(index_competition(small_data, workers=0), expected, strict=True):
        pd.testing.assert_frame_equal(table, wanted)


def test_a_connection_broken_by_a_death_counts_as_one(
    slices, trained, tmp_path, monkeypatch, caplog
):
    original, calls = reading.take_batches, []

    def break_once(loader):
        calls.append(1)
        for number, batch in enumerate(original(loader)):
            if number == 1 and len(calls) == 1:
                raise WorkerError("a worker process died while it was handing a batch over")
            yield batch

    monkeypatch.setattr(reading, "take_batches", break_once)
    weights = trained / "epoch2.safetensors"
    store = extract_embeddings(slices, weights, tmp_path / "store", CPU, 1)
    assert len(store.embeddings) == len(slices)
    assert len(calls) == 2
    assert DIED in caplog.text
    with pytest.raises(WorkerError, match="handing a batch over"):
        list(original(iter_broken()))


def iter_broken():
    yield {}
    raise ConnectionResetError


@pytest.mark.parametrize(
    ("size", "variable", "threads"), [(64, None, 1), (480, None, 2), (64, "2", 2)]
)
def test_small_images_are_computed_on_one_thread(monkeypatch, size, variable, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(2)
    try:
        limit_threads(size)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
