"""Beyond one machine: two nodes with a shared folder, and a cluster of joblib's that indexes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL

from kit.competition import read_submission
from kit.phantom import write_phantom
from kit.pipeline import run_recipe
from kit.recipes import find_recipe, format_flags
from kit.runs.directory import Run, read_recipe
from kit.slices.competition_files import index_competition
from kit.training.checkpoints import load_weights

# Dropout draws its own numbers in each process.
EXACT = {
    **SMALL,
    "train_folds": (0,),
    "classifier.opt_level": "O0",
    "lstm.opt_level": "O0",
    "lstm.embedding_dropout": 0.0,
}


def run_on_two_nodes(*words) -> None:
    """Run a command of kit by two launchers, each with one process, that meet on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    launcher = ["-m", "kit.cli.launch", "--nodes", "2", "--meet", f"127.0.0.1:{port}", "1"]
    command = [sys.executable, *launcher, *map(str, words)]
    nodes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for node in nodes:
        _, said = node.communicate(timeout=300)
        assert node.returncode == 0, said


def test_two_nodes_embed_train_and_predict_as_one_process(tmp_path):
    write_phantom(tmp_path / "data", patients=8, size=64, seed=2)
    recipe = find_recipe("demo", EXACT)
    shared = Run(tmp_path / "shared")
    flags = format_flags(EXACT)
    run_on_two_nodes("run", tmp_path / "data", "--run", shared, "--recipe", "demo", *flags)
    # One process goes on from the classifier that both have trained.
    alone = Run(tmp_path / "alone")
    shutil.copytree(shared.path, alone.path)
    for name in ("embeddings", "lstm"):
        shutil.rmtree(alone.path / "fold0" / name)
    for path in (alone.oof, alone.test, alone.metrics, alone.submission):
        path.unlink()
    run_recipe(tmp_path / "data", recipe, alone, workers=1)
    epoch = recipe.lstm.epochs
    ours, theirs = (
        load_weights(run.lstm(0, recipe.classifier.epochs) / f"epoch{epoch}.safetensors")[0]
        for run in (shared, alone)
    )
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)
    found, expected = (read_submission(run.submission) for run in (shared, alone))
    pd.testing.assert_frame_equal(found, expected, atol=1e-4, rtol=0)
    out = tmp_path / "submission.csv"
    run_on_two_nodes("predict-test", tmp_path / "data", "--run", shared, "--out", out)
    pd.testing.assert_frame_equal(read_submission(out), expected, atol=1e-4, rtol=0)
    assert read_recipe(shared) == recipe


def test_a_dask_cluster_that_loses_a_worker_indexes_as_one_process(small_data):
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    expected = index_competition(small_data, workers=1)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        victim, killed = next(iter(cluster.workers.values())).pid, threading.Event()

        def kill():
            os.kill(victim, signal.SIGKILL)
            killed.set()

        threading.Timer(0.2, kill).start()
        found = index_competition(small_data)
        assert killed.is_set()  # else the index had ended before
    for table, wanted in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(table, wanted)
