"""Pushing datasets and notebooks, by the real Kaggle client, to a server on 127.0.0.1."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from kaggle_kernels_server import KernelsServer
from kaggle_server import FOREVER, KEY

from kit.kaggle.build import NOTEBOOKS, build_kernel

# Waits are noted instead of spent.
DRIVER = """
import json, sys
from pathlib import Path
from kit.kaggle import push
from kit.kaggle.connection import KaggleError
from kit.progress import show_messages
show_messages()
options = json.loads(sys.argv[1])
waits = []
try:
    push.push(options["names"], Path(options["folder"]), options["hours"], sleep=waits.append)
    code = 0
except KaggleError as error:
    print(error, file=sys.stderr)
    code = 1
print("WAITS " + json.dumps(waits))
sys.exit(code)
"""
LEFT = {"left": "predictions", "reason": ""}


@dataclass
class Outcome:
    """How one `push` in a process of its own ended."""

    code: int
    stdout: str
    stderr: str
    waits: list[float]

    @property
    def sentence(self) -> str:
        return self.stderr.strip().splitlines()[-1]


class Desk:
    """A build folder with small datasets, and `push` in a process of its own."""

    def __init__(self, folder: Path, server: KernelsServer):
        self.folder, self.server = folder, server
        self.home = folder / "home"
        self.home.mkdir()
        self.write("wheels", {"kit-requirements.txt": b"kit==0.1.0\n"})
        self.write("weights", {"kit-run.json": b"{}", "fold0/lstm/epoch1/a.safetensors": b"w" * 99})
        for name in NOTEBOOKS:
            build_kernel(ROOT / "kernels" / name, folder / "kernels" / name, "reader")
        server.output = {
            "outcome.json": json.dumps(LEFT).encode(),
            "submission.csv": b"ID,Label\n",
            "run/fold0/checkpoint.safetensors": b"large",
        }

    def write(self, name: str, files: dict[str, bytes]) -> None:
        directory = self.folder / "datasets" / name
        for path, content in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        slug = f"hemorrhage-{name}"
        metadata = {"id": f"reader/{slug}", "title": slug, "licenses": [{"name": "other"}]}
        (directory / "dataset-metadata.json").write_text(json.dumps(metadata))

    def push(self, *names: str, hours: float = 13, **environment) -> Outcome:
        options = {"names": list(names), "folder": str(self.folder), "hours": hours}
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(options)],
            cwd=ROOT,
            env=self.server.environment(self.home, **environment),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        for stream in (done.stdout, done.stderr):
            assert KEY not in stream
            assert "SIGNED" not in stream
        waits = json.loads(done.stdout.rpartition("WAITS ")[2])
        return Outcome(done.returncode, done.stdout, done.stderr, waits)


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


def test_a_storage_that_is_down_is_tried_again_and_then_told(desk, server):
    server.fail("PUT", FOREVER, status=503)
    outcome = desk.push("predict")
    assert outcome.code == 1
    assert outcome.sentence.startswith("Kaggle's storage did not take the file (HTTP 503): wait")
    assert server.count("PUT") == 5
    assert server.count("CreateDataset") == 0


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
