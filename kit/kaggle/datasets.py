"""Datasets on Kaggle: create one or a new version of it, and wait until it can be attached."""

from __future__ import annotations

import hashlib
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from kit import progress
from kit.files import hash_file, read_json
from kit.kaggle.connection import (
    AGAIN,
    SENTENCES,
    Client,
    KaggleError,
    grow_delays,
    put_blob,
    quote_reason,
)
from kit.progress import log

if TYPE_CHECKING:
    from kagglesdk import KaggleClient

_READY_SECONDS = 3600.0  # how long Kaggle may take to unpack a dataset
_FAILURES = ("FAILED", "DELETED")
POLL_DELAY, LONGEST_POLL_DELAY = 10.0, 300.0  # seconds; see `grow_delays`


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

    def set_subject(self, reference: str, kind: str) -> None:
        """Let errors speak of `reference`, OWNER/SLUG of a dataset or of a notebook (`code`)."""
        self.subject, self.page = reference, f"https://www.kaggle.com/{kind}/{reference}"

    def find(self, choose: Callable[[KaggleClient], Callable], **fields: Any) -> Any:
        """Send a request as `call` does; return None where Kaggle knows no such thing."""
        try:
            return self.call(choose, **fields)
        except KaggleError as error:
            if error.status in (403, 404):  # either may be the answer
                return None
            raise

    def find_dataset(self, reference: str) -> Any:
        """Kaggle's description of a dataset, or None."""
        names = _name_fields(reference)
        return self.find(lambda kaggle: kaggle.datasets.dataset_api_client.get_dataset, **names)

    def poll_state(self, ask: Callable[[], str], ends: tuple[str, ...], seconds: float) -> str:
        """Ask for the state of the subject until it is one of `ends`, and log its changes.

        Raises `KaggleError` after `seconds`.
        """
        state = ""

        def check() -> str | None:
            nonlocal state
            before, state = state, ask()
            if state != before:
                log.info(f"{self.subject}: {state.lower().replace('_', ' ')}")
            return state if state in ends else None

        end = self.wait_until(check, grow_delays(POLL_DELAY, LONGEST_POLL_DELAY), seconds)
        if end is None:
            late = f"{self.subject} is still {state.lower()} after {seconds:g} seconds"
            raise KaggleError(f"{late}: {AGAIN} to wait on.")
        return end


def push_dataset(account: Account, folder: Path) -> str:
    """Bring the dataset to Kaggle where it is not there as it is, and wait until it is ready.

    Returns the mark of its content. One that Kaggle failed to process is uploaded again.
    """
    metadata = read_metadata(folder / "dataset-metadata.json", "id", "title", "licenses")
    reference = metadata["id"]
    account.set_subject(reference, "datasets")
    mark = f"Content {_hash_folder(folder)[:16]}"
    state, version = _find_state(account, reference, mark)
    uploaded = state in ("NOT_YET_LISTED", *_FAILURES)
    if uploaded:
        with tempfile.TemporaryDirectory() as scratch:
            tokens = [_upload_file(account, path) for path in _pack_folder(folder, Path(scratch))]
        account.retry(lambda: _save_dataset(account, metadata, tokens, mark))
    else:
        log.info(f"{reference}: Kaggle has it as it is.")

    def ask() -> str:
        now, latest = _find_state(account, reference, mark)
        earlier = uploaded and latest == version  # still the one that failed
        return "NOT_YET_LISTED" if now in _FAILURES and earlier else now

    # A notebook gets what is ready when it is pushed.
    state = account.poll_state(ask, ("READY", *_FAILURES), _READY_SECONDS)
    if state != "READY":
        failure = f"Kaggle could not process the dataset {reference} ({state})"
        raise KaggleError(f"{failure}: look at {account.page}, and push it again.")
    return mark


def _find_state(account: Account, reference: str, mark: str) -> tuple[str, int]:
    """Kaggle's state of the dataset, `NOT_YET_LISTED` where it has other content; its version."""
    dataset = account.find_dataset(reference)
    if dataset is None or mark not in dataset.description:
        return "NOT_YET_LISTED", dataset.current_version_number if dataset else 0
    answer = account.call(
        lambda kaggle: kaggle.datasets.dataset_api_client.get_dataset_status,
        **_name_fields(reference),
    )
    return answer.status.name, dataset.current_version_number


def read_metadata(path: Path, *fields: str) -> dict:
    """Read a JSON file that describes a dataset, a notebook or its end; it must have `fields`.

    Raises `KaggleError`.
    """
    try:
        document = read_json(path)
        missing = [name for name in fields if name not in document]
    except (ValueError, TypeError) as error:
        raise KaggleError(f"{path} is damaged ({error}): remove it, and build again.") from None
    if missing or not isinstance(document, dict):
        lack = f"lacks {', '.join(missing)}" if missing else "is not an object"
        raise KaggleError(f"{path} is damaged (it {lack}): remove it, and build again.")
    return document


def _name_fields(reference: str) -> dict[str, str]:
    return dict(zip(("owner_slug", "dataset_slug"), reference.split("/"), strict=True))


def _hash_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of the files below a folder, without its metadata."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "dataset-metadata.json":
            digest.update(f"{path.relative_to(folder)} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def _pack_folder(folder: Path, scratch: Path) -> Iterator[Path]:
    """The files to upload: those of the folder, and a zip of each folder in it.

    A dataset takes only files; Kaggle unpacks `fold0.zip` to `fold0/`.
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


def _upload_file(account: Account, path: Path) -> str:
    """Upload a file with bounded retries; return the token that stands for it."""
    from kagglesdk.blobs.types.blob_api_service import ApiBlobType

    size = path.stat().st_size

    def upload() -> str:
        blob = account.send(
            lambda kaggle: kaggle.blobs.blob_api_client.start_blob_upload,
            type=ApiBlobType.DATASET,
            name=path.name,
            content_length=size,
            last_modified_epoch_seconds=int(path.stat().st_mtime),
        )
        with (
            open(path, "rb") as file,
            tqdm.wrapattr(file, "read", size, desc=path.name, disable=progress.quiet) as content,
        ):
            put_blob(blob.create_url, content)
        return blob.token

    return account.retry(upload)


def _save_dataset(account: Account, metadata: dict, tokens: list[str], mark: str) -> None:
    """Create the dataset or a version; a retry after a lost answer makes one version too many."""
    from kagglesdk.datasets.types.dataset_api_service import (
        ApiCreateDatasetVersionRequestBody,
        ApiDatasetNewFile,
    )

    files = [ApiDatasetNewFile.from_dict({"token": token}) for token in tokens]
    names = _name_fields(metadata["id"])
    if account.find_dataset(metadata["id"]) is None:
        answer = account.send(
            lambda kaggle: kaggle.datasets.dataset_api_client.create_dataset,
            owner_slug=names["owner_slug"],
            slug=names["dataset_slug"],
            title=metadata["title"],
            license_name=metadata["licenses"][0]["name"],
            is_private=True,
            description=mark,
            files=files,
        )
    else:
        body = ApiCreateDatasetVersionRequestBody()
        body.version_notes, body.description, body.files = mark, mark, files
        answer = account.send(
            lambda kaggle: kaggle.datasets.dataset_api_client.create_dataset_version,
            body=body,
            **names,
        )
    if answer.error or answer.status.lower() == "error":
        reason = quote_reason(answer.error)
        raise KaggleError(f"Kaggle did not take the dataset {metadata['id']}: {reason}.")
