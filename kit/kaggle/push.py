"""Push notebooks to Kaggle, follow them, fetch what they leave."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import requests

from kit.files import read_json
from kit.kaggle.build import BUILD, NOTEBOOKS
from kit.kaggle.connection import PASSING_STATUSES, TIMEOUT, KaggleError, retry
from kit.kaggle.datasets import POLL_DELAY, Account, find_dataset, poll, push_dataset

RUN_SECONDS = 13 * 3600.0  # a notebook's 12 hours, and its wait for a machine
OPTIONAL = "backbone"  # the dataset without which train-classifier begins from random weights
NOT_FETCHED = ("checkpoint.safetensors", "embeddings.npy")  # large, and of use on Kaggle alone


def push(
    names: list[str] | None = None,
    folder: Path = BUILD,
    hours: float = RUN_SECONDS / 3600,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Push the built notebooks `names` and the datasets they need; follow and fetch each in turn.

    Without names: `predict` where weights were built, else both training notebooks. What a
    notebook leaves goes to `folder/output/SLUG`. Raises `KaggleError` for every failure, and where
    a notebook left less than it should.
    """
    trained = (folder / "datasets" / "weights").is_dir()
    names = names or (["predict"] if trained else ["train-classifier", "train-lstm"])
    for name in names:
        if name not in NOTEBOOKS or not (folder / "kernels" / name).is_dir():
            raise KaggleError(f"{folder}/kernels/{name} is not there: run `kit kernels` first.")
    account = Account(sleep)
    for dataset in sorted((folder / "datasets").iterdir()):
        if any(_needs(folder / "kernels" / name, dataset) for name in names):
            push_dataset(account, dataset)
    for name in names:
        reference = push_kernel(account, folder / "kernels" / name)
        follow_kernel(account, reference, hours * 3600)
        output = folder / "output" / reference.partition("/")[2]
        fetch_output(account, reference, output)
        report_outcome(reference, output)


def _needs(kernel: Path, dataset: Path) -> bool:
    sources = read_json(kernel / "kernel-metadata.json")["dataset_sources"]
    return read_json(dataset / "dataset-metadata.json")["id"] in sources


def push_kernel(account: Account, folder: Path) -> str:
    """Push a notebook, unless it is at work already; its reference, OWNER/SLUG."""
    metadata = read_json(folder / "kernel-metadata.json")
    reference = metadata["id"]
    owner, slug = account.about(reference, "code")
    state = read_state(account, owner, slug)
    if state in ("QUEUED", "RUNNING"):
        print(f"{reference} is at work already, as it was pushed before.", flush=True)
        return reference
    _leave_out_what_is_not_there(account, metadata, begun=state is not None)
    text = (folder / metadata["code_file"]).read_text(encoding="utf-8")
    answer = retry(lambda: _save_kernel(account, metadata, text), account.sleep)
    if answer.error:
        raise KaggleError(f"Kaggle did not take the notebook {reference}: {answer.error}")
    unknown = [
        *answer.invalid_dataset_sources,
        *answer.invalid_competition_sources,
        *answer.invalid_kernel_sources,
    ]
    if unknown:
        raise KaggleError(
            f"Kaggle pushed {reference} without {', '.join(unknown)}, which it does not know: "
            "push or join that first, cancel the notebook's run, and push it again."
        )
    print(f"{reference}: version {answer.version_number} is pushed: {answer.url}", flush=True)
    account.sleep(POLL_DELAY)  # the state asked for at once might be the last version's
    return reference


def _leave_out_what_is_not_there(account: Account, metadata: dict, begun: bool) -> None:
    """A notebook's own output before its first version, and initial weights never uploaded."""
    if not begun and metadata["id"] in metadata["kernel_sources"]:
        metadata["kernel_sources"].remove(metadata["id"])
    for source in list(metadata["dataset_sources"]):
        if source.endswith(f"-{OPTIONAL}") and find_dataset(account, *source.split("/")) is None:
            metadata["dataset_sources"].remove(source)
            print(f"{source} was never uploaded: the classifier begins from random weights.")


def _save_kernel(account: Account, metadata: dict, text: str):
    """Save and run a version. Not repeated unless Kaggle surely did nothing: it costs GPU hours."""
    try:
        return account.send(
            "kernels",
            "SaveKernel",
            slug=metadata["id"],
            new_title=metadata["title"],
            text=text,
            dataset_data_sources=metadata["dataset_sources"],
            competition_data_sources=metadata["competition_sources"],
            kernel_data_sources=metadata["kernel_sources"],
            model_data_sources=metadata["model_sources"],
            category_ids=metadata["keywords"],
            **{name: metadata[name] for name in SAME_NAME},
        )
    except KaggleError as error:
        error.passing = error.status == 429
        raise


# Fields of the request that are called as in kernel-metadata.json.
SAME_NAME = (
    "language",
    "kernel_type",
    "is_private",
    "enable_gpu",
    "enable_tpu",
    "enable_internet",
    "machine_shape",
    "docker_image_pinning_type",
)


def read_state(account: Account, owner: str, slug: str) -> str | None:
    """The state of a notebook's last version; None where there is none."""
    try:
        answer = account.call(
            "kernels", "GetKernelSessionStatus", user_name=owner, kernel_slug=slug
        )
    except KaggleError as error:
        if error.status in (403, 404):
            return None
        raise
    return answer.status.name


def follow_kernel(account: Account, reference: str, seconds: float = RUN_SECONDS) -> None:
    """Wait until the notebook has ended. Raises `KaggleError` where it failed or takes longer."""
    owner, slug = account.about(reference, "code")
    ends = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
    state = poll(
        account, lambda: read_state(account, owner, slug) or "QUEUED", ends, seconds, reference
    )
    if state == "CANCEL_ACKNOWLEDGED":
        raise KaggleError(f"{reference} was cancelled: push it again.")
    if state == "ERROR":
        answer = account.call(
            "kernels", "GetKernelSessionStatus", user_name=owner, kernel_slug=slug
        )
        reason = " ".join(answer.failure_message.split()).rstrip(".") or "no reason given"
        raise KaggleError(f"{reference} failed ({reason}): its log is at {account.page}.")


def fetch_output(account: Account, reference: str, directory: Path) -> None:
    """Download what the notebook's last version left, and its log, to `directory`."""
    owner, slug = account.about(reference, "code")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "outcome.json").unlink(missing_ok=True)  # an earlier version's
    token, log = "", ""
    while True:
        page = account.call(
            "kernels",
            "ListKernelSessionOutput",
            user_name=owner,
            kernel_slug=slug,
            page_size=100,
            page_token=token,
        )
        for file in page.files:
            target = (directory / file.file_name).resolve()
            if not target.is_relative_to(directory.resolve()):
                raise KaggleError(f"{reference} left a file outside its folder: {file.file_name}")
            if target.name not in NOT_FETCHED:
                retry(lambda f=file, t=target: _download(f.url, t), account.sleep)
        token, log = page.next_page_token, page.log or log
        if not token:
            break
    (directory / "log.txt").write_text(log, encoding="utf-8")
    print(f"{reference}: its output is in {directory}", flush=True)


def _download(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as answer, open(part, "wb") as file:
            answer.raise_for_status()
            for piece in answer.iter_content(1 << 20):
                file.write(piece)
    except requests.RequestException as error:
        part.unlink(missing_ok=True)
        status = None if error.response is None else error.response.status_code
        # The address is a permission to read: the error that quotes it is not shown.
        raise KaggleError(
            f"{target.name} could not be fetched ({status or type(error).__name__}): run the same "
            "command again.",
            status,
            passing=status is None or status in PASSING_STATUSES,
        ) from None
    os.replace(part, target)


def report_outcome(reference: str, directory: Path) -> None:
    """Say what the notebook left; `KaggleError` where that is less than it should."""
    path = directory / "outcome.json"
    if not path.exists():
        raise KaggleError(f"{reference} left no outcome: read {directory}/log.txt.")
    outcome = read_json(path)
    left, reason = outcome["left"], outcome["reason"].rstrip(".")
    if left == "training prior":
        raise KaggleError(
            f"{reference} left the training prior, not predictions ({reason}): do not submit it."
        )
    if left == "unfinished":
        raise KaggleError(
            f"{reference} is not finished ({reason}): run the same command again, and it goes on "
            "from there."
        )
    print(f"{reference} left {'a finished run' if left == 'finished' else left}.", flush=True)
