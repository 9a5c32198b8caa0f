"""Released models by name: downloaded at a fixed revision, checked, brought into the kit's form."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from kit import InputError
from kit.files import hash_file, name_errors, refuse_existing
from kit.models.released import RELEASED
from kit.progress import open_bar
from kit.runs.directory import lock_folder

PAUSES = (1, 5, 15)  # seconds, after attempts in a row that brought no byte
TIMEOUT = (10, 30)  # seconds, to connect and between two pieces
CHUNK = 1 << 16  # bytes; one that a broken connection cuts short is lost


class FetchError(InputError):
    """A released model cannot be downloaded; the text says why and what to do."""


def fetch_model(name: str, out: Path, classifier_only: bool = False, opt_level: str = "O0") -> Path:
    """Download a released model and turn it into the run directory `out`; return that.

    What has arrived stands in `OUT.partial` until the model is complete: after a failure the next
    attempt goes on where the last stopped, in this call or a later one.
    Raises `FetchError` without a network or where there is no such model to download, and
    otherwise as `import_model`.
    """
    if name not in _FETCHERS:
        known = ", ".join(_FETCHERS)
        by_hand = f" ({RELEASED[name].get})" if name in RELEASED else ""
        raise FetchError(f"kit fetch has no {name!r}{by_hand}; it has {known}")
    refuse_existing(out)
    return _FETCHERS[name](out, classifier_only, opt_level)


def _fetch_ianpan(out: Path, classifier_only: bool, opt_level: str) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url

    from kit.models.importing import import_model  # here, because they need torch
    from kit.models.reading import SUMS, read_sums

    entry = RELEASED["ianpan"]
    repository = entry.source.removeprefix("huggingface.co/")
    with keep_partial(out) as partial:
        instead = "download the folder elsewhere and use kit import-model"
        with name_network_errors(repository, instead):
            commit = _find_commit(repository, entry.revision)
            shutil.copyfile(hf_hub_download(repository, SUMS, revision=commit), partial / SUMS)
            for name, (size, sha256) in read_sums(partial / SUMS).items():
                if name in ("classifier/model.safetensors", "sequence/model.safetensors"):
                    url = hf_hub_url(repository, name, revision=commit)
                    download_file(url, partial / name, size, sha256)
        import_model(partial, out, "ianpan", classifier_only, opt_level)
    return out


def _find_commit(repository: str, revision: str) -> str:
    """The hash of the one commit of a repository that begins with `revision`."""
    from huggingface_hub import HfApi

    commits = [commit.commit_id for commit in HfApi().list_repo_commits(repository)]
    found = [commit for commit in commits if commit.startswith(revision)]
    if len(found) != 1:
        raise FetchError(f"{repository} has no revision {revision} any more")
    return found[0]


@contextlib.contextmanager
def keep_partial(out: Path) -> Iterator[Path]:
    """Yield the folder `OUT.partial` for downloads; where the block fails it stays for later.

    Raises `RunError` where another process is at work in it.
    """
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with lock_folder(partial):
        yield partial
        shutil.rmtree(partial)


def download_file(url: str, path: Path, size: int, sha256: str) -> None:
    """Download a file of `size` bytes to `path`, or what that lacks of it; check its SHA-256.

    Tries again while an attempt brings more, and a few times where it brings nothing. Raises
    `requests.RequestException` then, and `FetchError` for a file that is another, which is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pauses = iter(PAUSES)
    while (before := _measure(path)) < size:
        try:
            _append_rest(url, path, size)
        except requests.RequestException:
            if _measure(path) > before:
                pauses = iter(PAUSES)
            elif (pause := next(pauses, None)) is None:
                raise
            else:
                time.sleep(pause)
    if path.stat().st_size != size or hash_file(path) != sha256:
        path.unlink()
        raise FetchError(
            f"{url} is not the released file: its checksum is another. What had arrived was "
            "removed: run the same command again"
        )


def _append_rest(url: str, path: Path, size: int) -> None:
    """Append to `path` what it lacks of `size` bytes, or all where the server sends all.

    Raises `requests.RequestException` where less arrives. A token of the user's for Hugging Face is
    not sent on to the storage to which that redirects.
    """
    from huggingface_hub.utils import build_hf_headers

    start = _measure(path)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        answer.raise_for_status()
        if answer.status_code != 206:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise requests.RequestException("the server went on at another place than asked")
        with (
            open(path, "ab" if start else "wb", buffering=0) as file,
            open_bar(path.name, size, "B", start) as bar,
        ):
            bar.unit_scale = True
            for chunk in answer.iter_content(CHUNK):
                with name_errors(path):  # a full disk is no fault of the network
                    file.write(chunk[: size + 1 - file.tell()])  # one byte too many says so
                bar.update(len(chunk))
                if file.tell() > size:
                    return
    if _measure(path) < size:
        raise requests.ConnectionError("the server ended early")


def _measure(path: Path) -> int:
    """The bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def name_network_errors(repository: str, instead: str) -> Iterator[None]:
    """Raise `FetchError` where the block cannot be carried out; `instead` can be done by hand."""
    from huggingface_hub.errors import HfHubHTTPError

    # Its second base is the error of the library that carries the requests, whichever that is.
    network: Any = (OSError, HfHubHTTPError.__mro__[1])
    try:
        yield
    except network as error:
        if getattr(error, "filename", None):  # the disk's
            raise
        raise FetchError(
            f"{repository} could not be downloaded ({type(error).__name__}): with a network "
            f"connection the same command goes on; or {instead}"
        ) from error


_FETCHERS: dict[str, Callable[[Path, bool, str], Path]] = {"ianpan": _fetch_ianpan}
