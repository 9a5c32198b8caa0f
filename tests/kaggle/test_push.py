"""Pushing datasets and notebooks, by the real Kaggle client, to a server on 127.0.0.1."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import deque

import pytest
from kaggle_kernels_server import KernelsServer
from kaggle_server import FOREVER
from push_desk import LEFT, Desk


@pytest.fixture
def server():
    with KernelsServer() as server:
        yield server


@pytest.fixture
def desk(tmp_path, server):
    return Desk(tmp_path, server)


def test_the_first_push_creates_the_datasets_and_fetches_the_submission(desk, server):
    server.kernel_states = deque(["QUEUED", "RUNNING", "RUNNING", "COMPLETE"])
    outcome = desk.push("predict")
    assert outcome.code == 0, outcome.stderr
    assert server.count("CreateDataset") == 2
    assert server.count("CreateDatasetVersion") == 0
    assert server.datasets["reader/hemorrhage-wheels"]["files"] == {
        "kit-requirements.txt": b"kit==0.1.0\n"
    }
    # The folder travelled as a zip, stored, and lies in the dataset as it lay here.
    assert server.datasets["reader/hemorrhage-weights"]["files"] == {
        "kit-run.json": b"{}",
        "fold0/lstm/epoch1/a.safetensors": b"w" * 99,
    }
    created = [request.fields for request in server.find("CreateDataset")]
    assert [fields["isPrivate"] for fields in created] == [True, True]
    assert {fields["title"] for fields in created} == {"hemorrhage-wheels", "hemorrhage-weights"}
    output = desk.folder / "output" / "hemorrhage-predict"
    assert (output / "submission.csv").read_bytes() == b"ID,Label\n"
    assert (output / "log.txt").read_text() == "the log"
    assert not (output / "run").exists()  # checkpoints are of use on Kaggle alone
    assert "reader/hemorrhage-predict left predictions." in outcome.stdout
    assert outcome.waits == [10, 10, 15, 22.5]
    assert outcome.stdout.splitlines()[-1] == (
        f'make submit FILE={output}/submission.csv MESSAGE="hemorrhage-predict version 1"'
    )


def test_without_names_everything_that_was_built_is_pushed(desk, server):
    for name in ("tonight", "train-classifier", "train-lstm"):
        shutil.rmtree(desk.folder / "kernels" / name)
    assert desk.push().code == 0
    assert list(server.kernels) == ["reader/hemorrhage-predict"]


def test_the_same_content_is_fetched_again_and_starts_no_second_session(desk, server):
    """After a finished push, a failed fetch, a time that was over, Ctrl-C: one session."""
    output = desk.folder / "output" / "hemorrhage-predict"
    server.kernel_states = deque(["RUNNING"])
    assert desk.push("predict", hours=0).code == 1
    process = desk.start("predict", REAL_WAITS="1")
    while server.count("GetKernelSessionStatus") < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    server.kernel_states = deque(["COMPLETE"])
    server.fail("ListKernelSessionOutput", FOREVER, status=503)
    assert desk.push("predict").code == 1
    server.clear_faults()
    for _ in range(2):
        shutil.rmtree(output, ignore_errors=True)
        outcome = desk.push("predict")
        assert outcome.code == 0, outcome.stderr
        assert "reader/hemorrhage-predict: version 1 was pushed before." in outcome.stdout
        assert (output / "submission.csv").exists()
    assert server.count("SaveKernel") == 1


def test_another_content_is_another_version(desk, server):
    assert desk.push("predict").code == 0
    desk.write("weights", {"kit-run.json": b'{"other": 1}'})  # the notebook is as it was
    assert desk.push("predict").code == 0
    notebook = desk.folder / "kernels" / "predict" / "predict.ipynb"
    notebook.write_text(notebook.read_text() + "\n")
    assert desk.push("predict").code == 0
    assert len(server.kernels["reader/hemorrhage-predict"]) == 3


def test_the_lstm_is_trained_again_on_another_classifier(desk, server):
    names = ("train-classifier", "train-lstm")
    server.output["outcome.json"] = json.dumps({"left": "finished", "reason": ""}).encode()
    for _ in range(2):
        assert desk.push(*names).code == 0
    assert [len(versions) for versions in server.kernels.values()] == [1, 1]
    notebook = desk.folder / "kernels" / "train-classifier" / "train-classifier.ipynb"
    notebook.write_text(notebook.read_text() + "\n")
    assert desk.push(*names).code == 0
    assert [len(versions) for versions in server.kernels.values()] == [2, 2]


def test_a_version_is_followed_and_fetched_by_its_number(desk, server):
    """The last version that ended is an older one, and its output is not taken for the new."""
    server.kernels["reader/hemorrhage-predict"] = [{}]
    server.outputs = {1: {"outcome.json": json.dumps(LEFT).encode(), "old.csv": b"old"}}
    outcome = desk.push("predict")
    assert outcome.code == 0, outcome.stderr
    asked = server.find("GetKernelSessionStatus") + server.find("ListKernelSessionOutput")
    labels = [request.fields.get("versionLabel") for request in asked]
    assert labels == [None, *["v2"] * (len(labels) - 1)]
    output = desk.folder / "output" / "hemorrhage-predict"
    assert (output / "submission.csv").exists()
    assert not (output / "old.csv").exists()


def test_what_an_older_version_left_does_not_stay_beside_the_new(desk, server):
    assert desk.push("predict").code == 0
    server.outputs = {2: {"outcome.json": json.dumps(LEFT).encode()}}
    desk.write("weights", {"kit-run.json": b'{"other": 1}'})
    outcome = desk.push("predict")
    assert outcome.code == 0, outcome.stderr
    assert not (desk.folder / "output" / "hemorrhage-predict" / "submission.csv").exists()
    assert "make submit" not in outcome.stdout


def test_a_failed_version_is_pushed_again(desk, server):
    for state in ("ERROR", "CANCEL_ACKNOWLEDGED", "COMPLETE"):
        server.kernel_states = deque([state])
        assert (desk.push("predict").code == 0) == (state == "COMPLETE")
    assert len(server.kernels["reader/hemorrhage-predict"]) == 3


def test_images_that_were_filled_in_are_told(desk, server):
    left = LEFT | {"filled": 60_616, "images": 121_232}
    server.output["outcome.json"] = json.dumps(left).encode()
    outcome = desk.push("predict")
    assert outcome.code == 0
    assert "60616 of 121232 images could not be read and were filled in." in outcome.stderr


@pytest.mark.parametrize("outcome", [b"[]", b"{", b'{"left": "predictions"}', b'{"reason": 1}'])
def test_an_outcome_of_another_form_is_no_success(desk, server, outcome):
    server.output["outcome.json"] = outcome
    done = desk.push("predict")
    assert done.code == 1
    assert "outcome.json is damaged (" in done.sentence


def test_a_stray_file_among_the_datasets_is_named(desk):
    (desk.folder / "datasets" / ".DS_Store").write_bytes(b"\0")
    outcome = desk.push("predict")
    assert outcome.code == 1
    stray = f"{desk.folder}/datasets/.DS_Store"
    assert outcome.sentence == f"{stray} is no dataset that was built: remove it."


def test_what_is_pushed_says_that_it_has_a_gpu_and_no_internet(desk, server):
    assert desk.push("predict").code == 0
    (pushed,) = server.kernels["reader/hemorrhage-predict"]
    assert pushed["enableInternet"] is False
    assert pushed["enableGpu"] is True
    assert pushed["isPrivate"] is True
    assert pushed["machineShape"] == "NvidiaTeslaT4"
    assert pushed["kernelType"] == "notebook"
    assert pushed["datasetDataSources"] == [
        "reader/hemorrhage-wheels",
        "reader/hemorrhage-weights",
    ]
    assert pushed["competitionDataSources"] == ["rsna-intracranial-hemorrhage-detection"]
    assert pushed["text"] == (desk.folder / "kernels/predict/predict.ipynb").read_text()


def test_a_rejected_notebook_is_seen(desk, server):
    server.push_answer = {"error": "Maximum weekly GPU quota of 30.00 hours reached."}
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence == (
        "Kaggle did not take the notebook reader/hemorrhage-predict: Maximum weekly GPU quota of "
        "30.00 hours reached."
    )


def test_inputs_that_kaggle_does_not_know_are_named(desk, server):
    server.push_answer = {"invalidCompetitionSources": ["rsna-intracranial-hemorrhage-detection"]}
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence.startswith(
        "Kaggle pushed reader/hemorrhage-predict without rsna-intracranial-hemorrhage-detection, "
        "which it does not know: "
    )


def test_a_training_notebook_gets_its_own_output_from_the_second_version_on(desk, server):
    own = "reader/hemorrhage-train-classifier-fold0"
    left = {"left": "unfinished", "reason": "Fold 0 classifier 2/5: stopped in time after step 9"}
    server.output["outcome.json"] = json.dumps(left).encode()
    outcome = desk.push("train-classifier", "train-lstm")
    assert outcome.code == 1
    assert outcome.sentence == (
        f"{own} is not finished (Fold 0 classifier 2/5: stopped in time after step 9): run the "
        "same command again, and it continues from there."
    )
    server.output["outcome.json"] = json.dumps({"left": "finished", "reason": ""}).encode()
    assert desk.push("train-classifier", "train-lstm").code == 0
    first, second = server.kernels[own]
    assert "kernelDataSources" not in first
    assert second["kernelDataSources"] == [own]
    (lstm,) = server.kernels["reader/hemorrhage-train-lstm-fold0"]
    assert lstm["kernelDataSources"] == [own]


def test_nothing_is_pushed_without_initial_weights(desk, server):
    outcome = desk.push("train-classifier", random_weights=False)
    assert outcome.code == 1
    assert outcome.sentence.startswith("There are no initial weights, without which the training")
    assert server.kernels == server.datasets == {}
    desk.write("backbone", {"backbone.safetensors": b"weights"})
    outcome = desk.push("train-classifier", random_weights=False)
    assert outcome.code == 0, outcome.stderr


def test_initial_weights_are_attached_once_they_are_uploaded(desk, server):
    assert desk.push("train-classifier").code == 0
    desk.write("backbone", {"backbone.safetensors": b"weights"})
    outcome = desk.push("train-classifier")
    assert outcome.code == 0, outcome.stderr
    first, second = server.kernels["reader/hemorrhage-train-classifier-fold0"]
    assert first["datasetDataSources"] == ["reader/hemorrhage-wheels"]
    assert second["datasetDataSources"] == [
        "reader/hemorrhage-wheels",
        "reader/hemorrhage-backbone",
    ]
    assert "reader/hemorrhage-weights" not in server.datasets  # not needed, and not uploaded


def test_a_session_of_another_build_is_named_and_its_output_not_taken(desk, server):
    server.kernel_states = deque(["RUNNING"])
    assert desk.push("predict", hours=0).code == 1
    assert desk.push("predict", hours=0).sentence.startswith("reader/hemorrhage-predict is still")
    desk.write("weights", {"kit-run.json": b'{"other": 1}'})
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence == (
        "A session of reader/hemorrhage-predict that is not of this build is still running: wait "
        "for its end or cancel it at https://www.kaggle.com/code/reader/hemorrhage-predict, then "
        "run the same command again."
    )
    assert server.count("SaveKernel") == 1
    assert server.count("ListKernelSessionOutput") == 0
    server.kernel_states = deque(["COMPLETE"])
    assert desk.push("predict").code == 0
    assert server.count("SaveKernel") == 2


@pytest.mark.parametrize("left", ["unfinished", "training prior", "nothing", "finished"])
def test_weights_are_fetched_once_the_work_is_done(left, desk, server):
    server.output |= {
        "a/epoch1.safetensors": b"w" * 999,  # before outcome.json, in the order of the list
        "run/oof.parquet": b"table",
        "outcome.json": json.dumps({"left": left, "reason": "no GPU"}).encode(),
    }
    outcome = desk.push("train-classifier")
    assert (outcome.code == 0) == (left == "finished")
    if left == "nothing":
        assert outcome.sentence.endswith("fold0 left nothing (no GPU).")
    output = desk.folder / "output" / "hemorrhage-train-classifier-fold0"
    assert (output / "a/epoch1.safetensors").exists() == (left == "finished")
    assert (output / "run/oof.parquet").exists()
    assert (output / "log.txt").read_text() == "the log"


def test_a_failed_notebook_gives_its_reason(desk, server):
    server.kernel_states = deque(["RUNNING", "ERROR"])
    server.failure = "Your notebook tried to allocate\nmore memory than is available."
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence == (
        "reader/hemorrhage-predict failed (Your notebook tried to allocate more memory than is "
        "available): its log is at https://www.kaggle.com/code/reader/hemorrhage-predict."
    )


def test_a_cancelled_notebook_is_no_success(desk, server):
    server.kernel_states = deque(["CANCEL_ACKNOWLEDGED"])
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence == "reader/hemorrhage-predict was cancelled: push it again."


def test_a_prior_left_instead_of_predictions_is_no_success(desk, server):
    left = {"left": "training prior", "reason": "CUDA out of memory."}
    server.output["outcome.json"] = json.dumps(left).encode()
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence == (
        "reader/hemorrhage-predict left the training prior, not predictions (CUDA out of memory): "
        "do not submit it."
    )


def test_the_wait_ends_after_the_time_given(desk, server):
    server.kernel_states = deque(["RUNNING"])
    outcome = desk.push("predict", hours=0)
    assert outcome.code == 1
    assert outcome.sentence == (
        "reader/hemorrhage-predict is still running after 0 seconds: run the same command again "
        "to wait on."
    )


def test_a_limit_on_requests_is_waited_out(desk, server):
    server.fail("StartBlobUpload", 2, status=429, headers={"Retry-After": "7"})
    server.fail("SaveKernel", 1, status=429)
    outcome = desk.push("predict")
    assert outcome.code == 0, outcome.stderr
    assert outcome.waits[:2] == [7, 7]
    assert len(server.kernels["reader/hemorrhage-predict"]) == 1


def test_a_lost_answer_never_starts_a_second_session(desk, server):
    server.fail("SaveKernel", 1, lose_reply=True)
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence.startswith("No answer from Kaggle (")
    assert server.count("SaveKernel") == 1
    # It was carried out, though: the same command finds the notebook at work.
    server.kernel_states = deque(["RUNNING", "COMPLETE"])
    assert desk.push("predict").code == 0
    assert server.count("SaveKernel") == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "Kaggle refused the credentials: make a new token"),
        (403, "denied access to reader/hemorrhage-predict: KAGGLE_USER must be the user"),
        (502, "Kaggle's server failed: wait a few minutes"),
    ],
)
def test_a_refusal_is_one_sentence(desk, server, status, words):
    server.fail(
        "SaveKernel", FOREVER, status=status, page="<html>no</html>" if status == 502 else None
    )
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert words in outcome.sentence


def test_output_is_not_written_outside_its_folder(desk, server):
    server.output["../../escaped.txt"] = b"no"
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert "left a file outside its folder: ../../escaped.txt" in outcome.sentence
    assert not (desk.folder / "escaped.txt").exists()


def test_a_notebook_that_was_not_built_is_named(desk):
    outcome = desk.push("train")
    assert outcome.code == 1
    assert outcome.sentence.endswith("kernels/train is not there: run `kit kernels` first.")


def test_without_credentials_one_sentence_says_so(desk):
    outcome = desk.push("predict", KAGGLE_USERNAME=None, KAGGLE_KEY=None)
    assert outcome.code == 1
    assert outcome.sentence.startswith("No Kaggle credentials were found")
