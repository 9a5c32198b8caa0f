"""Datasets on Kaggle: create one or a new version of it, wait until it can be attached."""

from __future__ import annotations

import hashlib
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from kit import progress
from kit.files import read_json
from kit.kaggle.connection import SENTENCES, Client, KaggleError, put_blob, retry

READY_SECONDS = 3600.0  # how long Kaggle may take to unpack a dataset
POLL_DELAY, LONGEST_POLL_DELAY = 10.0, 300.0  # seconds; each wait is half as long again


class Account(Client):
    """One account's datasets and notebooks."""

    sentences = SENTENCES | {
        400: "Kaggle refused the request about {subject}: look at {page}",
        403: "Kaggle denied access to {subject}: KAGGLE_USER must be the user whose credentials "
        "are used, and the account's phone number verified",
        404: "Kaggle does not know {subject}: check KAGGLE_USER, and push what it needs first",
        413: "Kaggle found {subject} too large: export fewer folds or epochs",
    }

    def __init__(self, sleep: Callable[[float], None] = time.sleep):
        super().__init__("this account", "https://www.kaggle.com", sleep)

    def about(self, reference: str, kind: str) -> tuple[str, str]:
        """Let errors speak of `reference`, a dataset or a notebook (`code`); (owner, slug)."""
        self.subject, self.page = reference, f"https://www.kaggle.com/{kind}/{reference}"
        owner, _, slug = reference.partition("/")
        return owner, slug

    def call(self, service: str, method: str, **fields):
        """`send`, with passing failures tried again."""
        return retry(lambda: self.send(service, method, **fields), self.sleep)


def push_dataset(account: Account, folder: Path) -> None:
    """Create the dataset or a new version of it, unless Kaggle has it as it is; wait till ready."""
    metadata = read_json(folder / "dataset-metadata.json")
    owner, slug = account.about(metadata["id"], "datasets")
    mark = f"Content {hash_folder(folder)[:16]}"
    before = find_dataset(account, owner, slug)
    if before is not None and mark in before.description:
        print(f"{metadata['id']}: Kaggle has it as it is.", flush=True)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            tokens = [upload_file(account, path) for path in pack_folder(folder, Path(scratch))]
        retry(lambda: _save_dataset(account, metadata, tokens, mark), account.sleep)
    wait_for_dataset(account, owner, slug, mark)


def find_dataset(account: Account, owner: str, slug: str):
    """What Kaggle knows of a dataset, or None."""
    try:
        return account.call("datasets", "GetDataset", owner_slug=owner, dataset_slug=slug)
    except KaggleError as error:
        if error.status in (403, 404):  # of a dataset that is not there Kaggle may say either
            return None
        raise


def hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of the files below a folder, its metadata left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "dataset-metadata.json":
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


def pack_folder(folder: Path, scratch: Path) -> Iterator[Path]:
    """The files to upload: those of the folder, and a zip of each folder in it.

    A dataset takes files alone; Kaggle unpacks `fold0.zip` to `fold0/`.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            archive = scratch / f"{path.name}.zip"
            with zipfile.ZipFile(archive, "w") as file:  # stored: weights do not get smaller
                for member in sorted(path.rglob("*")):
                    file.write(member, member.relative_to(path))
            yield archive
            archive.unlink()
        elif path.name != "dataset-metadata.json":
            yield path


def upload_file(account: Account, path: Path) -> str:
    """Upload a file with bounded retries; the token that stands for it."""
    from kagglesdk.blobs.types.blob_api_service import ApiBlobType

    size = path.stat().st_size

    def attempt() -> str:
        upload = account.send(
            "blobs",
            "StartBlobUpload",
            type=ApiBlobType.DATASET,
            name=path.name,
            content_length=size,
            last_modified_epoch_seconds=int(path.stat().st_mtime),
        )
        with (
            open(path, "rb") as file,
            tqdm.wrapattr(
                file, "read", total=size, desc=path.name, disable=progress.quiet, ncols=80
            ) as content,
        ):
            put_blob(upload.create_url, content)
        return upload.token

    return retry(attempt, account.sleep)


def _save_dataset(account: Account, metadata: dict, tokens: list[str], mark: str) -> None:
    """Create the dataset or a version; a repetition after a lost answer makes one version more."""
    from kagglesdk.datasets.types import dataset_api_service as types

    owner, slug = metadata["id"].split("/")
    files = []
    for token in tokens:
        files.append(types.ApiDatasetNewFile())
        files[-1].token = token
    if find_dataset(account, owner, slug) is None:
        answer = account.send(
            "datasets",
            "CreateDataset",
            owner_slug=owner,
            slug=slug,
            title=metadata["title"],
            license_name=metadata["licenses"][0]["name"],
            is_private=True,
            description=mark,
            files=files,
        )
    else:
        body = types.ApiCreateDatasetVersionRequestBody()
        body.version_notes, body.description, body.files = mark, mark, files
        answer = account.send(
            "datasets", "CreateDatasetVersion", owner_slug=owner, dataset_slug=slug, body=body
        )
    if answer.error or answer.status.lower() == "error":
        reason = (answer.error or "no reason given").rstrip(".")
        raise KaggleError(f"Kaggle did not take the dataset {metadata['id']}: {reason}.")


def wait_for_dataset(account: Account, owner: str, slug: str, mark: str) -> None:
    """Wait until Kaggle has unpacked this content: a notebook is given what is ready when pushed.

    Raises `KaggleError` where Kaggle failed at it, or after an hour.
    """

    def ask() -> str:
        dataset = find_dataset(account, owner, slug)
        if dataset is None or mark not in dataset.description:
            return "NOT_YET_LISTED"
        answer = account.call("datasets", "GetDatasetStatus", owner_slug=owner, dataset_slug=slug)
        return answer.status.name

    state = poll(account, ask, ("READY", "FAILED", "DELETED"), READY_SECONDS, f"{owner}/{slug}")
    if state != "READY":
        raise KaggleError(
            f"Kaggle could not process the dataset {owner}/{slug} ({state}): look at "
            f"{account.page}, and push it again."
        )


def poll(
    account: Account, ask: Callable[[], str], ends: tuple[str, ...], seconds: float, name: str
) -> str:
    """Ask until the state is one of `ends`; `KaggleError` after `seconds`."""
    deadline, delay, last = time.monotonic() + seconds, POLL_DELAY, None
    while True:
        state = ask()
        if state != last:
            print(f"{name}: {state.lower().replace('_', ' ')}", flush=True)
            last = state
        if state in ends:
            return state
        if time.monotonic() > deadline:
            raise KaggleError(
                f"{name} is still {state.lower()} after {seconds:g} seconds: run the same command "
                "again to wait on."
            )
        account.sleep(delay)
        delay = min(delay * 1.5, LONGEST_POLL_DELAY)
