"""Push notebooks to Kaggle, follow them, and fetch what they leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kit.kaggle.build import BUILD, NOTEBOOKS, name_dataset
from kit.kaggle.connection import AGAIN, KaggleError, fetch_blob, quote_reason
from kit.kaggle.datasets import POLL_DELAY, Account, push_dataset, read_metadata
from kit.progress import log

_RUN_SECONDS = 13 * 3600.0  # a notebook's 12 hours, and its wait for a machine
# The initial weights, which train-classifier can do without.
_OPTIONAL = name_dataset("backbone")
_NOT_FETCHED = ("checkpoint.safetensors", "embeddings.npy")  # large, and needed only on Kaggle


def push(
    names: list[str] | None = None,
    folder: Path = BUILD,
    hours: float = _RUN_SECONDS / 3600,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Push the built notebooks `names` and the datasets they need; follow and fetch each in turn.

    Without names it pushes `predict` where weights were built, else both training notebooks. What
    a notebook leaves goes to `folder/output/SLUG`. Raises `KaggleError` for every failure, and
    where a notebook leaves less than it should.
    """
    trained = (folder / "datasets" / "weights").is_dir()
    names = names or (["predict"] if trained else ["train-classifier", "train-lstm"])
    for name in names:
        if name not in NOTEBOOKS or not (folder / "kernels" / name).is_dir():
            raise KaggleError(f"{folder}/kernels/{name} is not there: run `kit kernels` first.")
    account = Account(sleep)
    for dataset in sorted((folder / "datasets").iterdir()):
        if any(_needs_dataset(folder / "kernels" / name, dataset) for name in names):
            push_dataset(account, dataset)
    for name in names:
        reference = _push_kernel(account, folder / "kernels" / name)
        _follow_kernel(account, reference, hours * 3600)
        output = folder / "output" / reference.partition("/")[2]
        _fetch_output(account, reference, output)
        _report_outcome(reference, output)


def _needs_dataset(kernel: Path, dataset: Path) -> bool:
    sources = read_metadata(kernel / "kernel-metadata.json")["dataset_sources"]
    return read_metadata(dataset / "dataset-metadata.json")["id"] in sources


def _push_kernel(account: Account, folder: Path) -> str:
    """Push a notebook, unless it is running already; return its reference, OWNER/SLUG."""
    metadata = read_metadata(folder / "kernel-metadata.json")
    reference = metadata["id"]
    account.set_subject(reference, "code")
    session = _find_session(account, reference)
    if session and session.status.name in ("QUEUED", "RUNNING"):
        log.info(f"{reference} was pushed before and is still running.")
        return reference
    # Before its first version a notebook has no output to continue from.
    kernels = [source for source in metadata["kernel_sources"] if session or source != reference]
    sources = {"kernel_sources": kernels, "dataset_sources": _list_datasets(account, metadata)}
    text = (folder / metadata["code_file"]).read_text(encoding="utf-8")
    answer = account.retry(lambda: _save_kernel(account, metadata | sources, text))
    if answer.error:
        reason = quote_reason(answer.error)
        raise KaggleError(f"Kaggle did not take the notebook {reference}: {reason}.")
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
    log.info(f"{reference}: version {answer.version_number} is pushed: {answer.url}")
    account.sleep(POLL_DELAY)  # the state asked for at once might be the last version's
    return reference


def _list_datasets(account: Account, metadata: dict) -> list[str]:
    """The datasets of a notebook, without initial weights that were never uploaded."""
    sources = []
    for source in metadata["dataset_sources"]:
        if source.split("/")[1] == _OPTIONAL and account.find_dataset(source) is None:
            log.info(f"{source} was never uploaded: the classifier begins from random weights.")
        else:
            sources.append(source)
    return sources


def _save_kernel(account: Account, metadata: dict, text: str) -> Any:
    """Save and run a version. Retried only when Kaggle surely did nothing: it costs GPU hours."""
    fields = {_RENAMED.get(name, name): metadata[name] for name in metadata}
    try:
        return account.send(
            lambda kaggle: kaggle.kernels.kernels_api_client.save_kernel, **fields | {"text": text}
        )
    except KaggleError as error:
        error.passing = error.status == 429
        raise


# Fields of kernel-metadata.json that have another name in the request.
_RENAMED = {
    "id": "slug",
    "title": "new_title",
    "code_file": "text",
    "keywords": "category_ids",
    "competition_sources": "competition_data_sources",
    "dataset_sources": "dataset_data_sources",
    "kernel_sources": "kernel_data_sources",
    "model_sources": "model_data_sources",
}


def _find_session(account: Account, reference: str) -> Any:
    """Kaggle's description of the last version of a notebook, or None."""
    return account.find(
        lambda kaggle: kaggle.kernels.kernels_api_client.get_kernel_session_status,
        **_name_fields(reference),
    )


def _name_fields(reference: str) -> dict[str, str]:
    return dict(zip(("user_name", "kernel_slug"), reference.split("/"), strict=True))


def _follow_kernel(account: Account, reference: str, seconds: float) -> None:
    """Wait until the notebook has ended. Raises `KaggleError` where it fails or takes longer."""
    account.set_subject(reference, "code")
    session: Any = None

    def ask() -> str:
        nonlocal session
        session = _find_session(account, reference)
        return session.status.name if session else "QUEUED"

    ends = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
    state = account.poll_state(ask, ends, seconds)
    if state == "CANCEL_ACKNOWLEDGED":
        raise KaggleError(f"{reference} was cancelled: push it again.")
    if state == "ERROR":
        reason = quote_reason(session.failure_message)
        raise KaggleError(f"{reference} failed ({reason}): its log is at {account.page}.")


def _fetch_output(account: Account, reference: str, directory: Path) -> None:
    """Download what the notebook's last version left, and its log, to `directory`."""
    account.set_subject(reference, "code")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "outcome.json").unlink(missing_ok=True)  # an earlier version's
    token, text = "", ""
    while True:
        page = account.call(
            lambda kaggle: kaggle.kernels.kernels_api_client.list_kernel_session_output,
            page_size=100,
            page_token=token,
            **_name_fields(reference),
        )
        for file in page.files:
            target = (directory / file.file_name).resolve()
            if not target.is_relative_to(directory.resolve()):
                raise KaggleError(f"{reference} left a file outside its folder: {file.file_name}.")
            if target.name not in _NOT_FETCHED:
                account.retry(partial(fetch_blob, file.url, target))
        token, text = page.next_page_token, page.log or text
        if not token:
            break
    (directory / "log.txt").write_text(text, encoding="utf-8")
    log.info(f"{reference}: its output is in {directory}")


def _report_outcome(reference: str, directory: Path) -> None:
    """Log what the notebook left; raise `KaggleError` where that is less than it should."""
    path = directory / "outcome.json"
    if not path.exists():
        raise KaggleError(f"{reference} left no outcome: read {directory}/log.txt.")
    outcome = read_metadata(path)
    left, reason = outcome["left"], quote_reason(outcome["reason"])
    if left == "training prior":
        left = f"the training prior, not predictions ({reason})"
        raise KaggleError(f"{reference} left {left}: do not submit it.")
    if left == "unfinished":
        raise KaggleError(
            f"{reference} is not finished ({reason}): {AGAIN}, and it continues from there."
        )
    log.info(f"{reference} left {'a finished run' if left == 'finished' else left}.")
