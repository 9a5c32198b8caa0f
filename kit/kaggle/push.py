"""Push notebooks to Kaggle, follow them, and fetch what they leave."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kit.files import write_json
from kit.kaggle.build import BUILD, NOTEBOOKS, name_dataset
from kit.kaggle.connection import AGAIN, KaggleError, fetch_blob, quote_reason
from kit.kaggle.datasets import POLL_DELAY, Account, push_dataset, read_metadata
from kit.progress import log

_RUN_SECONDS = 13 * 3600.0  # a notebook's 12 hours, and its wait for a machine
_BACKBONE = name_dataset("backbone")  # the initial weights
_NOT_FETCHED = ("checkpoint.safetensors", "embeddings.npy")  # large, and needed only on Kaggle
_OUTCOME = "outcome.json"  # which each notebook leaves, as its `kit.kernels` writes it
_NOTES = "pushed.json"  # by notebook: what was pushed, as which version, and what that left
_AT_WORK = ("QUEUED", "RUNNING")
_DONE = ("predictions", "finished")


def push(
    names: list[str] | None = None,
    folder: Path = BUILD,
    hours: float = _RUN_SECONDS / 3600,
    random_weights: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Push the built notebooks and the datasets they need; follow and fetch each in turn.

    `names` chooses among the notebooks. What one leaves goes to `folder/output/SLUG`. A notebook
    that was pushed before as it is now is not started again unless it failed or did not finish:
    that version is followed and fetched. Raises `KaggleError` for every failure, where a notebook
    leaves less than it should, and for training without initial weights unless `random_weights`.
    """
    names = names or [name for name in NOTEBOOKS if (folder / "kernels" / name).is_dir()]
    for name in names or ["predict"]:
        if name not in NOTEBOOKS or not (folder / "kernels" / name).is_dir():
            raise KaggleError(f"{folder}/kernels/{name} is not there: run `kit kernels` first.")
    account = Account(sleep)
    needed = [source for name in names for source in _read_kernel(folder, name)["dataset_sources"]]
    built = {name: path for name, path in _list_datasets(folder).items() if name in needed}
    absent = {name for name in needed if name not in built and not account.find_dataset(name)}
    weights = {name for name in absent if name.endswith(f"/{_BACKBONE}")}
    if weights and not random_weights:
        raise KaggleError(
            "There are no initial weights, without which the training is worth little: `kit fetch "
            "resnext101 --out FILE` (convnext_small for `modern`), build with BACKBONE=FILE; or "
            "push with --random-weights."
        )
    if absent - weights:
        raise KaggleError(f"{min(absent)} was never built nor uploaded: run `kit kernels` first.")
    marks = {name: push_dataset(account, path) for name, path in built.items()}
    last = ""
    for name in names:
        kernel = _Kernel(account, folder, name, marks, absent)
        last = kernel.bring_output(hours * 3600) or last
    if last:
        log.info(last)


def _list_datasets(folder: Path) -> dict[str, Path]:
    """The built datasets by their names at Kaggle."""
    found = {}
    for path in sorted((folder / "datasets").iterdir()):
        metadata = path / "dataset-metadata.json"
        if not metadata.is_file():
            raise KaggleError(f"{path} is no dataset that was built: remove it.")
        found[read_metadata(metadata, "id", "title", "licenses")["id"]] = path
    return found


def _read_kernel(folder: Path, name: str) -> dict:
    path = folder / "kernels" / name / "kernel-metadata.json"
    return read_metadata(path, "id", "code_file", "dataset_sources", "kernel_sources")


class _Kernel:
    """A notebook of the build folder, and the note of what was pushed of it."""

    def __init__(
        self, account: Account, folder: Path, name: str, marks: dict[str, str], absent: set[str]
    ):
        """`marks` are the datasets' contents; those that are `absent` are not attached."""
        self.account, self.folder = account, folder
        self.metadata = metadata = _read_kernel(folder, name)
        self.reference = metadata["id"]
        self.text = (folder / "kernels" / name / metadata["code_file"]).read_text(encoding="utf-8")
        metadata["dataset_sources"] = [s for s in metadata["dataset_sources"] if s not in absent]
        self.notes = read_metadata(folder / _NOTES) if (folder / _NOTES).exists() else {}
        self.note = self.notes.get(self.reference, {})
        others = [self.notes.get(s, {}).get("version") for s in metadata["kernel_sources"]]
        if self.reference in metadata["kernel_sources"]:
            others.pop(metadata["kernel_sources"].index(self.reference))
        content = json.dumps([self.text, metadata, marks, others], sort_keys=True)
        self.mark = hashlib.sha256(content.encode()).hexdigest()
        account.set_subject(self.reference, "code")

    def bring_output(self, seconds: float) -> str:
        """Push the notebook where that is needed, wait for its end, fetch what it left.

        Returns the command that sends the submission it left; "" where it left none.
        """
        # The same content is pushed again where it has ended with less than it should.
        same = self.note.get("mark") == self.mark and self.note.get("left") in (None, *_DONE)
        version = self._find_version() if same else None
        if version is None:
            version = self._push()
        self._follow(version, seconds)
        output = self.folder / "output" / self.reference.partition("/")[2]
        self._fetch(version, output)
        self._report(output)
        submission = output / "submission.csv"
        message = f"{output.name} version {version}" if version else output.name
        sent = f'make submit FILE={submission} MESSAGE="{message}"'
        return sent if submission.exists() else ""

    def _write_note(self, **changes: Any) -> None:
        self.notes[self.reference] = self.note = self.note | changes
        write_json(self.folder / _NOTES, self.notes)

    def _find_version(self) -> int | None:
        """The version that was pushed; 0 for the latest, None where Kaggle never got it."""
        if self.note.get("version"):
            log.info(f"{self.reference}: version {self.note['version']} was pushed before.")
            return self.note["version"]
        latest = self._count_versions()  # the answer to the push was lost
        return latest if latest > self.note.get("after", 0) else None

    def _count_versions(self) -> int:
        fields = _name_fields(self.reference)
        found = self.account.find(
            lambda kaggle: kaggle.kernels.kernels_api_client.get_kernel, **fields
        )
        return found.metadata.current_version_number if found and found.metadata else 0

    def _push(self) -> int:
        """Save and run a version, unless another is at work; return its number, 0 if not known."""
        account, metadata, reference = self.account, self.metadata, self.reference
        session = self._find_session()
        if session and session.status.name in _AT_WORK:
            raise KaggleError(
                f"A session of {reference} that is not of this build is still running: wait for "
                f"its end or cancel it at {account.page}, then {AGAIN}."
            )
        # Before its first version a notebook has no output to continue from.
        kernels = [
            source for source in metadata["kernel_sources"] if session or source != reference
        ]
        after = self.note.get("version") or (self._count_versions() if session else 0)
        self._write_note(mark=self.mark, after=after, version=None, left=None)
        fields = metadata | {"kernel_sources": kernels}
        answer = account.retry(lambda: _save_kernel(account, fields, self.text))
        if answer.error:
            reason = quote_reason(answer.error)
            raise KaggleError(f"Kaggle did not take the notebook {reference}: {reason}.")
        unknown = [
            *answer.invalid_dataset_sources,
            *answer.invalid_competition_sources,
            *answer.invalid_kernel_sources,
        ]
        if unknown:
            self._write_note(left="failed")
            raise KaggleError(
                f"Kaggle pushed {reference} without {', '.join(unknown)}, which it does not know: "
                "push or join that first, cancel the notebook's run, and push it again."
            )
        self._write_note(version=answer.version_number)
        log.info(f"{reference}: version {answer.version_number} is pushed: {answer.url}")
        account.sleep(POLL_DELAY)  # the state asked for at once might be the last version's
        return answer.version_number

    def _find_session(self, version: int = 0) -> Any:
        """Kaggle's description of a version of the notebook, by default of the last, or None."""
        return self.account.find(
            lambda kaggle: kaggle.kernels.kernels_api_client.get_kernel_session_status,
            **_name_fields(self.reference, version),
        )

    def _follow(self, version: int, seconds: float) -> None:
        """Wait until the version has ended. Raises `KaggleError` if it fails or takes longer."""
        account, session = self.account, None

        def ask() -> str:
            nonlocal session
            session = self._find_session(version)
            return session.status.name if session else "QUEUED"

        ends = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
        state = account.poll_state(ask, ends, seconds)
        if state == "COMPLETE":
            return
        if version:
            self._write_note(left="failed")
        if state == "CANCEL_ACKNOWLEDGED":
            raise KaggleError(f"{self.reference} was cancelled: push it again.")
        reason = quote_reason(session.failure_message) if session else "no reason given"
        raise KaggleError(f"{self.reference} failed ({reason}): its log is at {account.page}.")

    def _fetch(self, version: int, directory: Path) -> None:
        """Download what the version left, and its log, to `directory`, in place of an earlier's.

        Weights, which take gigabytes, come only where the work is done.
        """
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        files: dict[Path, str] = {}
        text = ""
        for page in self.account.iterate_pages(
            lambda kaggle: kaggle.kernels.kernels_api_client.list_kernel_session_output,
            **_name_fields(self.reference, version),
        ):
            files |= {self._place(directory, file.file_name): file.url for file in page.files}
            text = page.log or text
        (directory / "log.txt").write_text(text, encoding="utf-8")
        note = (directory / _OUTCOME).resolve()
        for target in sorted(files, key=lambda target: target != note):
            done = (self._read_outcome(directory) or {}).get("left") in _DONE
            if target.name not in _NOT_FETCHED and (done or target.suffix != ".safetensors"):
                self.account.retry(partial(fetch_blob, files[target], target))
        log.info(f"{self.reference}: its output is in {directory}")

    def _place(self, directory: Path, name: str) -> Path:
        """Where a file of the output goes. Raises `KaggleError` outside `directory`."""
        target = (directory / name.replace("\0", "/../..")).resolve()
        if directory.resolve() not in target.parents:
            outside = f"left a file outside its folder: {quote_reason(name)}"
            raise KaggleError(f"{self.reference} {outside}.")
        return target

    def _read_outcome(self, directory: Path) -> dict | None:
        path = directory / _OUTCOME
        return read_metadata(path, "left", "reason") if path.exists() else None

    def _report(self, directory: Path) -> None:
        """Log and note what was left; raise `KaggleError` where that is less than it should be."""
        outcome, reference = self._read_outcome(directory), self.reference
        if outcome is None:
            self._write_note(left="failed")
            raise KaggleError(f"{reference} left no outcome: read {directory}/log.txt.")
        left, reason = str(outcome["left"]), quote_reason(str(outcome["reason"]))
        if self.note.get("version"):
            self._write_note(left=left)
        if left == "training prior":
            left = f"the training prior, not predictions ({reason})"
            raise KaggleError(f"{reference} left {left}: do not submit it.")
        if left == "unfinished":
            raise KaggleError(
                f"{reference} is not finished ({reason}): {AGAIN}, and it continues from there."
            )
        if left not in _DONE:
            raise KaggleError(f"{reference} left {quote_reason(left)} ({reason}).")
        log.info(f"{reference} left {'a finished run' if left == 'finished' else left}.")
        if outcome.get("filled"):
            log.warning(
                f"{reference}: {outcome['filled']} of {outcome.get('images')} images could not be "
                "read and were filled in."
            )


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


def _name_fields(reference: str, version: int = 0) -> dict[str, str]:
    """The fields of a request that name a notebook, or one version of it."""
    owner, _, slug = reference.partition("/")
    named = {"user_name": owner, "kernel_slug": slug}
    return named | ({"version_label": f"v{version}"} if version else {})
