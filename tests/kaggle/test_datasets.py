"""Datasets as `kit.kaggle.push` creates them, makes versions of them and waits for them."""

from __future__ import annotations

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


def test_a_changed_dataset_gets_a_version_and_an_unchanged_one_nothing(desk, server):
    assert desk.push("predict").code == 0
    uploads = server.count("PUT")
    desk.write("wheels", {"kit-requirements.txt": b"kit==0.2.0\n"})
    outcome = desk.push("predict")
    assert outcome.code == 0, outcome.stderr
    assert "reader/hemorrhage-weights: Kaggle has it as it is." in outcome.stdout
    assert server.count("CreateDataset") == 2
    assert server.count("CreateDatasetVersion") == 1
    assert server.count("PUT") == uploads + 1
    dataset = server.datasets["reader/hemorrhage-wheels"]
    assert dataset["version"] == 2
    assert dataset["files"] == {"kit-requirements.txt": b"kit==0.2.0\n"}


def test_the_notebook_is_pushed_only_when_its_datasets_are_ready(desk, server):
    server.dataset_states = deque(["NOT_YET_PERSISTED", "BLOBS_RECEIVED", "READY"])
    assert desk.push("predict").code == 0
    names = [request.name for request in server.requests]
    assert names.index("SaveKernel") > max(
        index for index, name in enumerate(names) if name == "GetDatasetStatus"
    )
    assert server.count("GetDatasetStatus") == 4


def test_a_dataset_that_kaggle_cannot_process_stops_the_push(desk, server):
    server.dataset_states = deque(["BLOBS_RECEIVED", "FAILED"])
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence == (
        "Kaggle could not process the dataset reader/hemorrhage-weights (FAILED): look at "
        "https://www.kaggle.com/datasets/reader/hemorrhage-weights, and push it again."
    )
    assert server.count("SaveKernel") == 0


def test_an_error_in_a_successful_answer_is_seen(desk, server):
    server.dataset_answer = {"status": "error", "error": "The requested title is already in use."}
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence == (
        "Kaggle did not take the dataset reader/hemorrhage-weights: The requested title is "
        "already in use."
    )


def test_a_storage_that_is_down_is_tried_again_and_then_told(desk, server):
    server.fail("PUT", FOREVER, status=503)
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence.startswith("Kaggle's storage did not take the file (HTTP 503): wait")
    assert server.count("PUT") == 5
    assert server.count("CreateDataset") == 0


def test_a_dataset_that_kaggle_failed_to_process_is_uploaded_again(desk, server, monkeypatch):
    name = "reader/hemorrhage-weights"
    server.dataset_states = deque(["FAILED"])
    assert desk.push("predict").code == 1
    assert server.count("PUT") == 2  # the weights; the wheels were to follow
    describe, late = server._describe_dataset, []

    def describe_late(fields):
        """For one answer after the upload, the version that failed."""
        found = describe(fields)
        if fields["datasetSlug"] in name and found["currentVersionNumber"] == 2 and not late:
            late.append(found)
            found = found | {"currentVersionNumber": 1}
        return found

    monkeypatch.setattr(server, "_describe_dataset", describe_late)
    server.dataset_states = deque(["FAILED", "FAILED", "BLOBS_RECEIVED", "READY"])
    outcome = desk.push("predict")
    assert outcome.code == 0, outcome.stderr
    assert late
    assert server.datasets[name]["version"] == 2
    assert server.datasets[name]["files"]["kit-run.json"] == b"{}"
    assert (server.count("CreateDataset"), server.count("CreateDatasetVersion")) == (2, 1)
    assert server.count("SaveKernel") == 1
