"""A command in a process for each GPU: as one, stopped in time, and failed."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from notebook_session import CHANGES, Session

from kit import pipeline
from kit.competition import SLUG, read_submission
from kit.embeddings import EmbeddingStore
from kit.kernels import cells as kernels
from kit.kernels import launch
from kit.kernels.inputs import KernelError
from kit.recipes import find_recipe
from kit.runs.directory import Run
from kit.training.loop import OutOfTime


def test_two_processes_predict_as_one(small_data, weights, predicted, tmp_path, monkeypatch):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    session.mount("datasets", "hemorrhage-weights", weights)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(launch, "count_processes", lambda: 2)
    submission = tmp_path / "submission.csv"
    kernels.predict(kernels.prepare_prediction(session.input, submission))
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["left"], outcome["reason"], outcome["filled"]) == ("predictions", "", 1)
    np.testing.assert_allclose(read_submission(submission), predicted, atol=1e-4)


def test_two_processes_stop_in_time_together(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = Run(tmp_path / "run")
    pipeline.index(small_data, find_recipe("demo", {**CHANGES, "train_folds": (0,)}), run)
    words = ["train-classifier", str(run), "--fold", "0", "--hours", "0", "--workers", "1"]
    with pytest.raises(OutOfTime, match=r"^Fold 0 classifier 1/1: stopped in time after step 2$"):
        launch.run_command(*words, processes=2)
    assert (run.classifier(0) / "checkpoint.safetensors").exists()


def test_two_processes_stop_embedding_together_and_go_on(small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = Run(tmp_path / "run")
    shutil.copytree(small_run.path, run.path)
    shutil.rmtree(run.store(0, 1))
    words = ["embed", str(run), "--fold", "0", "--workers", "1"]
    with pytest.raises(OutOfTime, match="Fold 0 embeddings 1: stopped in time after"):
        launch.run_command(*words, "--hours", "0", processes=2)
    assert not (run.store(0, 1) / "store.json").exists()
    launch.run_command(*words, processes=2)
    found, expected = EmbeddingStore(run.store(0, 1)), EmbeddingStore(small_run.store(0, 1))
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=2e-3)


def test_a_command_that_is_killed_is_told_with_the_likely_reason(monkeypatch, tmp_path):
    class Killed(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.kill()

    monkeypatch.setattr(launch.subprocess, "Popen", Killed)
    with pytest.raises(KernelError, match="kit embed was killed by signal 9: the memory was prob"):
        launch.run_command("embed", str(tmp_path))


def test_what_a_command_prints_does_not_decide_how_it_ended(monkeypatch, tmp_path):
    """Lines of several processes may run together, and others may begin as an error does."""
    program = tmp_path / "command"
    note = """echo '[3, "Fold 0: stopped in time after step 2"]' > "$KIT_ENDING\""""
    for script, error, said in (
        ("echo 'kit: kit: no error'; exit 3", OutOfTime, "^kit embed stopped in time$"),
        (f"{note}; echo 'kit: another'; exit 1", OutOfTime, "^Fold 0: stopped in time after step"),
        ("echo 'kit: a warning'; exit 7", KernelError, "^kit embed ended with exit code 7.$"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(launch.sys, "executable", str(program))
        with pytest.raises(error, match=said):
            launch.run_command("embed", "run")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_command_that_fails_is_raised_with_its_sentence(processes, tmp_path, capsys):
    with pytest.raises(KernelError, match="there is no run here"):
        launch.run_command("train-lstm", str(tmp_path / "run"), processes=processes)
    # What the command prints is in the notebook, and said by one of the processes.
    assert capsys.readouterr().out.count("kit: ") == 1
