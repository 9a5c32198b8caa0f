"""The notebooks run for real: no network but loopback, inputs read-only, kit from its wheel.

Every notebook runs in a fresh environment of the test's: a virtual environment in which the
libraries of the test's own interpreter are visible, and kit is not until the notebook installs it.
"""

import json
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from notebook_session import CHANGES, Session
from safetensors.numpy import load_file

import kit
from kit import pipeline
from kit.cli.commands import make_parser
from kit.cli.flags import read_recipe
from kit.competition import (
    LABELS,
    SLUG,
    TRAINING_PRIOR,
    read_labels,
    read_submission,
)
from kit.kaggle.build import build_wheels
from kit.kernels import cells as kernels
from kit.kernels import launch
from kit.kernels.inputs import KernelError
from kit.recipes import find_recipe
from kit.runs.directory import Run, begin_run, list_folds
from kit.runs.export import export_runs
from kit.submission import read_sample, validate_submission
from kit.training.loop import OutOfTime

SAMPLE = "stage_2_sample_submission.csv"


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
    score = json.loads(small_run.metrics.read_text())["scores"]["bag"]["all"]["weighted"]
    assert f"\nScore: {score:.4f} held out\n" in text
    outcome = {"left": "predictions", "reason": "", "score": score, "filled": 1, "images": 146}
    assert json.loads((session.working / "outcome.json").read_text()) == outcome
    validate_submission(session.working / "submission.csv", data / SAMPLE)
    submitted = read_submission(session.working / "submission.csv")
    np.testing.assert_allclose(submitted, predicted, atol=1e-4)
    # Not more than the rounding of halved weights lies between it and the run's own submission.
    np.testing.assert_allclose(submitted, read_submission(small_run.submission), atol=0.05)
    # The sanity table, score-free: means against the share of positive training slices.
    assert "\n1 of 146 images could not be read and were filled in.\n" in text
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
    assert "2 of 146 images could not be read and were filled in." in text
    assert json.loads((session.working / "outcome.json").read_text())["filled"] == 2
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


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda wheel: wheel.write_bytes(wheel.read_bytes()[:-2000]), " cannot be installed: "),
        (lambda wheel: wheel.rename(wheel.with_name("kit-9-py3-none-any.whl")), " cannot be "),
        (lambda wheel: wheel.with_name("kit-requirements.txt").write_text("kit==9"), " is not of "),
    ],
)
def test_a_wheel_that_does_not_fit_is_said_in_one_sentence(
    spoil, said, interpreter, wheels, small_data, tmp_path
):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    copy = session.mount("datasets", "hemorrhage-wheels", wheels)
    spoil(next(copy.glob("kit-*.whl")))
    code, text = session.run(interpreter, "predict", {"KIT": kit.__version__})
    assert code == 1
    assert "The wheel" in text
    assert said in text


@pytest.mark.parametrize("field", ["recipe", "folds", "prior", "out_of_fold", "sha256"])
def test_a_manifest_without_a_field_is_named(field, small_data, weights, tmp_path):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    manifest = session.mount("datasets", "hemorrhage-weights", weights) / "kit-run.json"
    document = json.loads(manifest.read_text())
    for value in ({}, {field: [1]}):
        manifest.write_text(json.dumps({k: v for k, v in document.items() if k != field} | value))
        if value and field in ("recipe", "folds"):  # which are only shown
            continue
        with pytest.raises(KernelError, match=rf"kit-run\.json.*{field}|kit-run\.json: not a man"):
            kernels.prepare_prediction(session.input, tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").exists()


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


def test_a_prediction_stops_in_time_and_goes_on_from_its_own_output(
    small_data, weights, predicted, tmp_path, capsys
):
    first = Session(tmp_path / "first", "new")
    data = first.mount("competitions", SLUG, small_data)
    first.mount("datasets", "hemorrhage-weights", weights)
    first.working.mkdir()
    prediction = kernels.prepare_prediction(first.input, first.working / "submission.csv")
    before = prediction.submission.read_bytes()
    kernels.predict(prediction, 0.0, first.input)
    assert prediction.submission.read_bytes() == before
    outcome = json.loads((first.working / "outcome.json").read_text())
    assert outcome["left"] == "unfinished"
    assert "Embeddings 1/2: stopped in time" in outcome["reason"]
    assert "stopped in time" in capsys.readouterr().out

    shutil.copytree(first.working, first.input / "notebooks" / "reader" / "hemorrhage-predict")
    for path in (first.input / "notebooks").rglob("*"):
        path.chmod(0o555)
    prediction = kernels.prepare_prediction(first.input, tmp_path / "submission.csv")
    kernels.predict(prediction, 1.0, first.input)
    said = capsys.readouterr().out
    assert f"Continuing from {first.input}/notebooks/reader/hemorrhage-predict" in said
    assert json.loads((tmp_path / "outcome.json").read_text())["left"] == "predictions"
    np.testing.assert_allclose(read_submission(prediction.submission), predicted, atol=1e-4)
    validate_submission(prediction.submission, data / SAMPLE)
    assert len(pd.read_csv(tmp_path / "submission.skipped.csv")) == 1
    assert not (tmp_path / "work").exists()


def test_tonight_stops_in_time_and_goes_on_to_a_submission_by_two_processes(
    interpreter, wheels, small_data, tmp_path
):
    """One notebook from DICOM files to a submission; version 2 goes on where version 1 stopped."""
    parameters = {"RECIPE": "demo", "CHANGES": {**CHANGES, "train_folds": (0,)}, "HOURS": 0.0}
    first = Session(tmp_path / "first", "new")
    data = first.mount("competitions", SLUG, small_data)
    first.mount("datasets", "hemorrhage-wheels", wheels)
    code, text = first.run(interpreter, "tonight", parameters, processes=2)
    assert code == 0, text
    assert "Initial weights: none attached, random ones" in text
    assert "Hours by image size (rows) and classifier epochs; * ends within 0.1 h" in text
    stopped = "\nFold 0 classifier 1/1: stopped in time after step 2. Push the notebook again"
    assert stopped in text, text
    assert "submission.csv is valid, but still the training prior: " in text
    assert "There are no predictions to show." in text
    outcome = json.loads((first.working / "outcome.json").read_text())
    assert outcome["left"] == "unfinished"
    validate_submission(first.working / "submission.csv", data / SAMPLE)
    np.testing.assert_allclose(
        read_submission(first.working / "submission.csv").iloc[0],
        [round(TRAINING_PRIOR[label], 6) for label in LABELS],
        atol=1e-9,
    )

    second = Session(tmp_path / "second", "old")
    data = second.mount("competitions", SLUG, small_data)
    second.mount("datasets", "hemorrhage-wheels", wheels)
    second.mount("notebooks", "hemorrhage-tonight", first.working)
    parameters["HOURS"] = 1.0
    code, text = second.run(interpreter, "tonight", parameters, processes=2)
    assert code == 0, text
    assert f"Continuing from {second.input}/hemorrhage-tonight/run" in text
    assert "submission.csv is valid and holds the predictions." in text
    run = Run(second.working / "run")
    metrics = json.loads(run.metrics.read_text())
    score = metrics["scores"]["bag"]["all"]["weighted"]
    assert f"\nScore: {score:.4f} held out\n1 of 146 images could not be read" in text
    outcome = {"left": "predictions", "reason": "", "score": score, "filled": 1, "images": 146}
    assert json.loads((second.working / "outcome.json").read_text()) == outcome
    submission = second.working / "submission.csv"
    validate_submission(submission, data / SAMPLE)
    assert submission.read_bytes() == run.submission.read_bytes()
    assert run.report.exists()
    assert "image/png" in text
    history = json.loads((run.classifier(0) / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1]


@pytest.mark.parametrize("plan", ["works", "fails"])
def test_tonight_takes_the_planned_size_and_keeps_it(plan, small_data, tmp_path, monkeypatch):
    """The commands are noted, not run. A plan that fails costs the choice alone."""
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    commands, size = [], 384 if plan == "works" else 320
    (tmp_path / "output").mkdir()

    def run_command(*words, processes=1):
        commands.append(words)
        if words[0] in ("plan", "index") and "--hours" in words and plan == "fails":
            raise KernelError("the models of 480 px do not fit")
        if words[0] == "index":
            planned = {"classifier.weights": "", "classifier.image_size": size, "seed": 7}
            begin_run(Run(tmp_path / "run"), find_recipe("tonight", planned), tmp_path)
        if words[0] == "train-classifier":
            raise OutOfTime("stopped in time after step 2")

    monkeypatch.setattr(launch, "run_command", run_command)
    monkeypatch.chdir(tmp_path)
    auto = {"classifier.image_size": "auto", "seed": 7}
    kernels.tonight("tonight", 11.0, auto, session.input)
    assert json.loads((tmp_path / "outcome.json").read_text())["left"] == "unfinished"
    index = [words for words in commands if words[0] == "index"][-1]
    assert ("--classifier-image-size=auto" in index) == (plan == "works")
    assert ("--hours" in index) == (plan == "works")

    (tmp_path / "run").rename(tmp_path / "output" / "run")
    session.mount("notebooks", "hemorrhage-tonight", tmp_path / "output")
    monkeypatch.setattr(launch, "run_command", lambda *words, **_: None)
    for changes, restored in ((auto, True), ({**auto, "seed": 8}, False)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        kernels.tonight("tonight", 11.0, changes, session.input)
        # Nothing was trained: a file that is missing leaves the prior, and an outcome.
        assert json.loads((tmp_path / "outcome.json").read_text())["left"] == "training prior"
        assert (tmp_path / "run" / "config.json").exists() == restored


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
    assert "stopped in time after step 1. Push the notebook again" in text, text
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


def test_a_training_that_fails_leaves_its_reason_and_no_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KernelError, match="data are not attached"):
        kernels.train_classifier("demo", 0, 1.0, root=tmp_path)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["left"] == "nothing"
    assert "data are not attached" in outcome["reason"]


@pytest.mark.parametrize(("fold", "folds"), [("all", ""), (1, "1")])
def test_one_model_on_all_data_is_the_fold_all(fold, folds, small_data, tmp_path, monkeypatch):
    """The commands are noted, not run."""
    session, commands = Session(tmp_path, "new"), []
    session.mount("competitions", SLUG, small_data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run_command", lambda *words, **_: commands.append(words))
    kernels.train_classifier("single", fold, 1.0, {"folds": 3}, session.input)
    index, *stages = commands
    assert f"--train-folds={folds}" in index
    assert [words[:4] for words in stages] == [
        (command, "run", "--fold", str(fold)) for command in ("train-classifier", "embed")
    ]
    read = read_recipe(make_parser(["index"]).parse_args(index))
    assert (list_folds(read), read.folds) == ([fold], 3)


def test_the_lstm_needs_the_output_of_the_classifier(small_data, tmp_path):
    session = Session(tmp_path, "new")
    session.mount("competitions", SLUG, small_data)
    with pytest.raises(KernelError, match="No attached notebooks hold embeddings of fold 0: attac"):
        kernels.train_lstm(0, 1.0, session.input)
