"""The notebooks run for real: no network but loopback, inputs read-only, kit from its wheel.

Every notebook runs in a fresh environment of the test's: a virtual environment in which the
libraries of the test's own interpreter are visible, and kit is not until the notebook installs it.
"""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from safetensors.numpy import load_file

from kit import pipeline
from kit.competition import (
    LABELS,
    SLUG,
    TRAINING_PRIOR,
    read_labels,
    read_submission,
)
from kit.embeddings import EmbeddingStore
from kit.kaggle.build import build_wheels, render_notebook
from kit.kernels import cells as kernels
from kit.kernels import launch
from kit.kernels.inputs import KernelError, find_data, list_inputs, restore_run
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run
from kit.runs.export import MANIFEST, export_runs
from kit.runs.prediction import predict_competition
from kit.submission import read_sample, validate_submission
from kit.training.loop import OutOfTime

SAMPLE = "stage_2_sample_submission.csv"
# Fields of the demo recipe with which a fold is trained in seconds.
CHANGES = {
    "folds": 2,
    "bag_lstm_epochs": 1,
    "classifier.epochs": 1,
    "lstm.epochs": 1,
    "lstm.hidden_size": 16,
}


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory) -> Path:
    """A virtual environment's Python that sees every library of this one's but kit."""
    folder = tmp_path_factory.mktemp("environment")
    libraries = folder / "libraries"
    libraries.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("kit-", "__editable__", "kit.egg")):
            (libraries / path.name).symlink_to(path)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    (Path(own.stdout.strip()) / "libraries.pth").write_text(f"{libraries}\n")
    without = subprocess.run([python, "-c", "import kit"], capture_output=True, text=True, cwd="/")
    assert "No module named 'kit'" in without.stderr
    return python


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    """The dataset of wheels as it is built, without the decoders, which need a network."""
    folder = tmp_path_factory.mktemp("wheels") / "wheels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit.kaggle.build.PYTHONS", ())
        build_wheels(ROOT, folder)
    return folder


@pytest.fixture(scope="session")
def weights(small_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "weights"
    export_runs([small_run], folder)
    return folder


@pytest.fixture(scope="session")
def predicted(small_data, weights, tmp_path_factory) -> pd.DataFrame:
    """What the exported weights predict, by one process of the test's own."""
    out = tmp_path_factory.mktemp("predicted") / "submission.csv"
    predict_competition(small_data, Run(weights), out, np.full(6, 0.1), workers=1)
    return read_submission(out)


@dataclass
class Session:
    """A notebook's session: `input` as Kaggle mounts it, `working` where it runs."""

    folder: Path
    layout: str

    @property
    def input(self) -> Path:
        return self.folder / "input"

    @property
    def working(self) -> Path:
        return self.folder / "working"

    def mount(self, kind: str, name: str, source: Path) -> Path:
        place = {
            "competitions": Path("competitions", name),
            "datasets": Path("datasets", "reader", name),
            "notebooks": Path("notebooks", "reader", name),
        }[kind]
        target = self.input / (place if self.layout == "new" else name)
        shutil.copytree(source, target)
        return target

    def run(self, interpreter: Path, name: str, parameters: dict | None = None):
        """Run the notebook `name`; (exit code, all that its cells printed)."""
        self.working.mkdir()
        (self.folder / "tmp").mkdir(exist_ok=True)
        text = (ROOT / "kernels" / name / f"{name}.py").read_text(encoding="utf-8")
        notebook = self.folder / f"{name}.ipynb"
        notebook.write_text(render_notebook(text, parameters), encoding="utf-8")
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "--net", "--mount", "--map-root-user", "sh", "-c", mount]
        command += [self.input, interpreter, ROOT / "tests" / "run_notebook.py"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "KIT_INPUT": str(self.input),
            "TMPDIR": str(self.folder.parent),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "JUPYTER_PLATFORM_DIRS": "1",
        }
        done = subprocess.run(
            [*map(str, command), str(notebook), str(notebook)],
            cwd=self.working,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, _read_outputs(notebook)


def _read_outputs(path: Path) -> str:
    texts = []
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), data.get("text/plain", "")]
            texts += ["image/png"] * ("image/png" in data) + output.get("traceback", [])
    return "\n".join(filter(None, texts))


def _mount_for_prediction(session, data, wheels, weights) -> Path:
    session.mount("datasets", "hemorrhage-wheels", wheels)
    session.mount("datasets", "hemorrhage-weights", weights)
    return session.mount("competitions", SLUG, data)


def test_predict_leaves_the_submission_of_the_run(
    interpreter, wheels, weights, predicted, small_run, small_data, tmp_path
):
    session = Session(tmp_path, "new")
    data = _mount_for_prediction(session, small_data, wheels, weights)
    code, text = session.run(interpreter, "predict")
    assert code == 0, text
    assert "submission.csv is valid and holds the predictions." in text
    assert json.loads((session.working / "outcome.json").read_text())["left"] == "predictions"
    validate_submission(session.working / "submission.csv", data / SAMPLE)
    submitted = read_submission(session.working / "submission.csv")
    np.testing.assert_allclose(submitted, predicted, atol=1e-4)
    # Not more than the rounding of halved weights lies between it and the run's own submission.
    np.testing.assert_allclose(submitted, read_submission(small_run.submission), atol=0.05)
    # The sanity table, score-free: means against the share of positive training slices.
    assert "876 rows for 146 images; 1 images could not be read" in text
    labels = read_labels(small_data / "stage_2_train.csv")
    slices = pd.read_parquet(small_run.slices)
    prior = labels.loc[slices.loc[slices["split"] == "train", "SOPInstanceUID"], "any"].mean()
    row = next(line for line in text.splitlines() if line.startswith("any ")).split()
    assert [float(number) for number in row[1:3]] == pytest.approx(
        [submitted["any"].mean(), prior], abs=1e-4
    )
    assert "image/png" in text


def test_an_unreadable_slice_is_filled_in_and_the_submission_complete(
    interpreter, wheels, weights, small_data, tmp_path
):
    session = Session(tmp_path, "old")
    data = _mount_for_prediction(session, small_data, wheels, weights)
    images = read_sample(data / SAMPLE)
    readable = pd.read_csv(small_data / "stage_2_test_truth.csv")["ID"].iloc[0].rpartition("_")[0]
    damaged = data / "stage_2_test" / f"{readable}.dcm"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    code, text = session.run(interpreter, "predict")
    assert code == 0, text
    validate_submission(session.working / "submission.csv", data / SAMPLE)
    filled = pd.read_csv(session.working / "submission.filled.csv")
    assert readable in set(filled["SOPInstanceUID"])
    assert filled["filled_from"].str.startswith("neighbours ID_").all()
    reasons = pd.read_csv(session.working / "submission.skipped.csv").set_index("SOPInstanceUID")
    assert "pixel" in reasons.loc[readable, "reason"]
    assert len(read_submission(session.working / "submission.csv")) == len(images)


def test_a_missing_wheel_is_said_in_one_sentence(interpreter, small_data, tmp_path):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    code, text = session.run(interpreter, "predict")
    assert code == 1
    assert "No wheel of kit is attached: add the dataset with kit-requirements.txt" in text


def test_missing_weights_are_said_and_leave_the_training_prior(small_data, tmp_path):
    session = Session(tmp_path, "old")
    data = session.mount("competitions", SLUG, small_data)
    submission = tmp_path / "submission.csv"
    with pytest.raises(
        KernelError, match="No sets of trained weights are attached: attach"
    ) as error:
        kernels.prepare_prediction(session.input, submission)
    assert error.value._render_traceback_() == [f"KernelError: {error.value}"]
    validate_submission(submission, data / SAMPLE)
    wide = read_submission(submission)
    expected = np.tile([round(TRAINING_PRIOR[label], 6) for label in LABELS], (len(wide), 1))
    np.testing.assert_allclose(wide, expected, atol=1e-9)


def test_missing_data_are_said(tmp_path):
    (tmp_path / "competitions").mkdir()
    with pytest.raises(KernelError, match="competition's data are not attached: add the competit"):
        kernels.prepare_prediction(tmp_path, tmp_path / "submission.csv")


def test_damaged_weights_are_named(small_data, weights, tmp_path):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    copy = session.mount("datasets", "hemorrhage-weights", weights)
    victim = copy / "fold1/classifier/epoch1.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(KernelError, match=r"fold1/classifier/epoch1.safetensors is damaged"):
        kernels.prepare_prediction(session.input, tmp_path / "submission.csv")


def test_a_prediction_that_fails_leaves_the_prior_and_says_so(
    small_data, weights, tmp_path, capsys
):
    session = Session(tmp_path, "new")
    data = session.mount("competitions", SLUG, small_data)
    copy = session.mount("datasets", "hemorrhage-weights", weights)
    prediction = kernels.prepare_prediction(session.input, tmp_path / "submission.csv")
    before = prediction.submission.read_bytes()
    (copy / "fold0/lstm/epoch1/epoch2.safetensors").unlink()
    kernels.predict(prediction)
    assert prediction.submission.read_bytes() == before
    validate_submission(prediction.submission, data / SAMPLE)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["left"] == "training prior"
    assert "fold0/lstm/epoch1/epoch2.safetensors is missing" in outcome["reason"]
    assert "is valid, but still the training prior: " in capsys.readouterr().out
    kernels.show_slices(prediction)
    assert "There are no predictions to show." in capsys.readouterr().out


def test_two_processes_predict_as_one(small_data, weights, predicted, tmp_path, monkeypatch):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    session.mount("datasets", "hemorrhage-weights", weights)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(launch, "count_processes", lambda: 2)
    submission = tmp_path / "submission.csv"
    kernels.predict(kernels.prepare_prediction(session.input, submission))
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome == {"left": "predictions", "reason": ""}
    np.testing.assert_allclose(read_submission(submission), predicted, atol=1e-4)


def test_two_processes_stop_in_time_together(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = Run(tmp_path / "run")
    pipeline.index(small_data, find_recipe("demo", {**CHANGES, "train_folds": (0,)}), run)
    words = ["train-classifier", str(run), "--fold", "0", "--hours", "0", "--workers", "1"]
    with pytest.raises(OutOfTime, match="Fold 0 classifier 1/1: stopped in time after step 1"):
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


@pytest.mark.parametrize("processes", [1, 2])
def test_a_command_that_fails_is_raised_with_its_sentence(processes, tmp_path, capsys):
    with pytest.raises(KernelError, match="there is no run here"):
        launch.run_command("train-lstm", str(tmp_path / "run"), processes=processes)
    assert "kit: " in capsys.readouterr().out  # what the command prints is in the notebook


def test_training_stops_in_time_and_goes_on_from_its_own_output(
    interpreter, wheels, small_data, tmp_path
):
    """Version 1 stops; version 2, in the other layout, ends as if it had never stopped."""
    parameters = {"RECIPE": "demo", "CHANGES": CHANGES, "HOURS": 0.0}
    first = Session(tmp_path / "first", "new")
    first.mount("competitions", SLUG, small_data)
    first.mount("datasets", "hemorrhage-wheels", wheels)
    code, text = first.run(interpreter, "train-classifier", parameters)
    assert code == 0, text
    assert "stopped in time after step 1. Push the notebook again" in text
    assert json.loads((first.working / "outcome.json").read_text())["left"] == "unfinished"

    second = Session(tmp_path / "second", "old")
    second.mount("competitions", SLUG, small_data)
    second.mount("datasets", "hemorrhage-wheels", wheels)
    second.mount("notebooks", "train-classifier", first.working)
    code, text = second.run(interpreter, "train-classifier", {**parameters, "HOURS": 1.0})
    assert code == 0, text
    assert f"Continuing from {second.input}/train-classifier/run" in text
    assert "Fold 0: train-classifier is finished" in text

    whole = Run(tmp_path / "whole")
    pipeline.index(small_data, find_recipe("demo", {**CHANGES, "train_folds": (0,)}), whole)
    pipeline.fit_classifier(whole, 0, workers=1)
    stopped = load_file(second.working / "run/fold0/classifier/epoch1.safetensors")
    for name, value in load_file(whole.classifier(0) / "epoch1.safetensors").items():
        np.testing.assert_allclose(stopped[name], value, atol=1e-4, err_msg=name)

    third = Session(tmp_path / "third", "new")
    data = third.mount("competitions", SLUG, small_data)
    third.mount("datasets", "hemorrhage-wheels", wheels)
    third.mount("notebooks", "train-classifier", second.working)
    code, text = third.run(interpreter, "train-lstm", {"HOURS": 1.0})
    assert code == 0, text
    assert "Fold 0: train-lstm is finished" in text
    validate_submission(third.working / "submission.csv", data / SAMPLE)
    run = Run(third.working / "run")
    assert json.loads(run.metrics.read_text())["scores"]["bag"]["all"]["weighted"] > 0
    # What the notebook leaves can be exported, and does not hold the embeddings again.
    assert not (run.path / "fold0/embeddings").exists()
    assert export_runs([run], tmp_path / "weights")["folds"] == [0]


def test_the_lstm_needs_the_output_of_the_classifier(small_data, tmp_path):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    with pytest.raises(KernelError, match="No attached notebooks hold embeddings of fold 0: attac"):
        kernels.train_lstm(0, 1.0, session.input)


def test_outputs_of_different_recipes_are_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        begin_run(Run(tmp_path / name), find_recipe("demo", {"seed": seed}), tmp_path)
    with pytest.raises(KernelError, match="b hold different runs: detach the one"):
        restore_run(Run(tmp_path / "run"), [tmp_path / "a", tmp_path / "b"])


def test_what_was_read_only_is_restored_to_be_written(tmp_path):
    earlier = tmp_path / "earlier"
    (earlier / "fold0" / "embeddings").mkdir(parents=True)
    begin_run(Run(earlier), find_recipe("demo"), tmp_path)
    (earlier / "fold0" / "embeddings" / "embeddings.npy").write_bytes(b"many")
    for path in (earlier / "config.json", earlier / "fold0", earlier):
        path.chmod(0o555)
    run = Run(tmp_path / "run")
    restore_run(run, [earlier], ("embeddings",))
    assert run.config.stat().st_mode & 0o200
    assert (run.path / "fold0").stat().st_mode & 0o200
    assert not (run.path / "fold0" / "embeddings").exists()


@pytest.mark.parametrize("layout", ["new", "old"])
def test_inputs_are_found_without_looking_into_them(layout, weights, tmp_path, monkeypatch):
    session = Session(tmp_path, layout)
    deep = tmp_path / "deep"
    (deep / "stage_2_test").mkdir(parents=True)
    data = session.mount("competitions", SLUG, deep)
    inputs = [
        session.mount("datasets", "hemorrhage-weights", weights),
        session.mount("notebooks", "train-classifier", deep),
    ]
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(Path(path)), scandir(path))[1])
    assert list_inputs(session.input) == sorted(inputs)
    assert kernels.find_marked(MANIFEST, session.input) == inputs[:1]
    assert find_data(session.input) == data
    assert listed
    inside = [
        path for path in listed for place in [data, *inputs] if place in [path, *path.parents]
    ]
    assert inside == []
