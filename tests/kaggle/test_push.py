"""Pushing datasets and notebooks, by the real Kaggle client, to a server on 127.0.0.1."""

from __future__ import annotations

import json
from collections import deque

import pytest
from kaggle_kernels_server import KernelsServer
from kaggle_server import FOREVER
from push_desk import Desk


@pytest.fixture
def server():
    with KernelsServer() as server:
        yield server


@pytest.fixture
def desk(tmp_path, server):
    return Desk(tmp_path, server)


def test_the_first_push_creates_the_datasets_and_fetches_the_submission(desk, server):
    server.kernel_states = deque(["QUEUED", "RUNNING", "RUNNING", "COMPLETE"])
    outcome = desk.push()
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


def test_initial_weights_are_attached_once_they_are_uploaded(desk, server):
    outcome = desk.push("train-classifier")
    assert "hemorrhage-backbone was never uploaded: the classifier begins" in outcome.stdout
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


def test_a_notebook_at_work_is_waited_for_and_not_pushed_again(desk, server):
    server.kernels["reader/hemorrhage-predict"] = [{}]
    server.kernel_states = deque(["RUNNING", "RUNNING", "COMPLETE"])
    outcome = desk.push("predict")
    assert outcome.code == 0, outcome.stderr
    assert server.count("SaveKernel") == 0
    assert "was pushed before and is still running" in outcome.stdout


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
    server.kernels["reader/hemorrhage-predict"] = [{}]
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
