"""Download the competition's files: resumed where a transfer broke off, verified, then renamed."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError

from kit import progress
from kit.competition import SLUG
from kit.files import hash_file
from kit.kaggle.connection import (
    AGAIN,
    LATER,
    RETRY_DELAYS,
    TIMEOUT,
    CompetitionClient,
    KaggleError,
    check_storage,
    describe_silence,
    quote_reason,
)
from kit.progress import log, open_bar

_UNKNOWN = "Kaggle gives no checksum for it"
_MOST_ATTEMPTS = 1000  # where each brings a little
CHUNK = 1 << 16  # bytes; a chunk that a broken connection cuts short is lost


@dataclass(frozen=True)
class _RemoteFile:
    """A file as Kaggle's storage describes it.

    `size` is in bytes, `version` (ETag or date) tells one state of the file from another, `md5` is
    its checksum in base64 where Kaggle gives one, and `request` fetches it for some minutes.
    """

    name: str
    size: int
    version: str
    md5: str | None
    request: requests.PreparedRequest

    def locate_part(self, directory: Path) -> Path:
        """The file that grows until it is whole; another version of it grows elsewhere."""
        state = hashlib.sha256(f"{self.version} {self.size}".encode()).hexdigest()[:12]
        return directory / f"{self.name}.{state}.part"


def download_competition(
    directory: str | Path,
    competition: str = SLUG,
    files: Sequence[str] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Download the competition's one zip, or only `files`, into `directory`; return the paths.

    First logs how much disk the files need; raises `KaggleError` when there is too little. A
    second call continues where the first broke off, and leaves whole files alone. (Listing the
    competition's files would take thousands of requests; slices are read from the zip as it is.)
    """
    directory = Path(directory)
    names: list[str | None] = [*files] or [None]
    client = CompetitionClient(competition, sleep)
    remotes = [client.retry(partial(_describe_file, client, name)) for name in names]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _check_disk(remotes, directory)
        return [
            _fetch_file(client, remote, name, directory)
            for remote, name in zip(remotes, names, strict=True)
        ]
    except OSError as error:
        raise KaggleError(
            f"{error.filename or directory}: the download cannot be written ({error.strerror}): "
            f"make room or choose another folder, and {AGAIN}."
        ) from None


def _describe_file(client: CompetitionClient, name: str | None) -> _RemoteFile:
    """Ask Kaggle, once, for a file of the competition, or with None for the zip of them all."""
    slug = client.subject
    try:
        if name is None:
            answer = client.send(lambda service: service.download_data_files, competition_name=slug)
        else:
            fields = {"competition_name": slug, "file_name": name}
            answer = client.send(lambda service: service.download_data_file, **fields)
    except KaggleError as error:
        if error.status == 404 and name is not None:
            text = f"Kaggle does not know {name} in {slug}: check the spelling of both (HTTP 404)."
            raise KaggleError(text, 404) from None
        raise
    answer.close()
    headers = answer.headers
    version = headers.get("ETag") or headers.get("Last-Modified")
    local = name or f"{slug}.zip"
    if "Content-Length" not in headers or "Content-Encoding" in headers or version is None:
        raise KaggleError(
            f"Kaggle gives no size or version for {local}, so that it cannot be verified: download "
            "the competition's zip instead."
        )
    # Kaggle zips large files one by one, which only the address shows.
    if answer.url.split("?")[0].endswith(".zip") and not local.endswith(".zip"):
        local += ".zip"
    md5 = re.search(r"md5=([A-Za-z0-9+/]+=*)", headers.get("x-goog-hash", ""))
    if not re.fullmatch("[0-9]{1,20}", size := headers["Content-Length"]):
        raise KaggleError(f"Kaggle gives no size for {local}, but {quote_reason(size)}: {LATER}.")
    return _RemoteFile(local, int(size), version, md5[1] if md5 else None, answer.request)


def _check_disk(remotes: Sequence[_RemoteFile], directory: Path) -> None:
    """Log what will be downloaded; raise `KaggleError` when the disk has too little room."""
    needed = 0
    for remote in remotes:
        present = min(_measure(directory / remote.name), remote.size)
        if present < remote.size:
            present = min(_measure(remote.locate_part(directory)), remote.size)
        needed += remote.size - present
        size, here = _format_bytes(remote.size), _format_bytes(present)
        log.info(f"{remote.name}: {size}, {here} of it here")
    free = shutil.disk_usage(directory).free
    need = f"{_format_bytes(needed)} of disk needed in {directory}, {_format_bytes(free)} free"
    log.info(need)
    if needed > free:
        raise KaggleError(
            f"Not enough disk: {need}; make room or choose another folder; nothing was downloaded."
        )


def _fetch_file(
    client: CompetitionClient, first: _RemoteFile, name: str | None, directory: Path
) -> Path:
    """Download one file, verify it, and give it its name; return its path.

    A file that is there already is verified too. Gives up after five failures in a row without a
    new byte; a large file may break off often.
    """
    if _is_here(first, directory / first.name):
        return directory / first.name
    remote: _RemoteFile | None = first
    failures = 0

    def fetch() -> Path:
        nonlocal remote, failures
        failures += 1
        current = remote or _describe_file(client, name)
        remote = None  # after a failure: its address may have run out
        part = current.locate_part(directory)
        part.parent.mkdir(parents=True, exist_ok=True)
        before = _measure(part)
        try:
            _transfer(current, part)
            _verify(current, part)
        except KaggleError:
            failures = 0 if _measure(part) > before else failures
            raise
        os.replace(part, directory / current.name)
        return directory / current.name

    def pace() -> Iterator[float]:
        for _ in range(_MOST_ATTEMPTS):
            if failures > len(RETRY_DELAYS):
                return
            yield RETRY_DELAYS[max(failures - 1, 0)]

    fetched = client.wait_until(fetch, pace(), name=first.name)
    assert fetched is not None  # where the transfer fails, its last error is raised
    return fetched


def _is_here(remote: _RemoteFile, path: Path) -> bool:
    """Whether a file is Kaggle's; a damaged one of the right size is named."""
    if _measure(path) != remote.size:
        return False
    damage = _find_damage(remote, path)
    if damage:
        log.warning(f"{path}: {damage}; it is downloaded again")
    return not damage


def _transfer(remote: _RemoteFile, part: Path) -> None:
    """Append to `part` what the file still lacks, or start again where that is not certain."""
    for stale in part.parent.glob(f"{Path(remote.name).name}.*.part"):
        if stale != part:
            stale.unlink()
    start = _measure(part)
    if start == remote.size:
        return
    start = start if start < remote.size else 0
    try:
        with _open_stream(remote, start) as answer:
            if answer.status_code != 206:
                start = 0
            _write_stream(answer, remote, part, start)
    except (requests.RequestException, HTTPError) as error:
        raise describe_silence(error) from None


def _open_stream(remote: _RemoteFile, start: int) -> requests.Response:
    """The storage's answer from byte `start` on: 206 with the rest, 200 with the whole file."""
    request = remote.request.copy()
    request.headers["Accept-Encoding"] = "identity"  # the bytes as they are counted
    if start:
        request.headers["Range"] = f"bytes={start}-"
    session = requests.Session()
    settings = session.merge_environment_settings(request.url or "", {}, True, None, None)
    answer = session.send(request, timeout=TIMEOUT, **settings)
    try:
        check_storage(answer, f"did not give {remote.name}")
    except KaggleError as error:
        error.passing = True  # its address may have run out, and another one is asked for
        raise
    expected = f"bytes {start}-{remote.size - 1}/{remote.size}"
    if answer.status_code == 206 and answer.headers.get("Content-Range") != expected:
        place = f"Kaggle's storage continued {remote.name} at another place than asked"
        raise KaggleError(f"{place}: {AGAIN}.", passing=True)
    return answer


def _write_stream(answer: requests.Response, remote: _RemoteFile, part: Path, start: int) -> None:
    """Write the body of `answer` to `part` from byte `start` on, with a bar on stderr."""
    with (
        open(part, "r+b" if start else "wb") as file,
        open_bar(remote.name, remote.size, "B", start) as bar,
    ):
        bar.unit_scale = True
        file.seek(start)
        for chunk in answer.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _verify(remote: _RemoteFile, part: Path) -> None:
    """Raise `KaggleError` unless `part` is the whole file; a damaged one is deleted."""
    size = _measure(part)
    if size < remote.size:
        text = f"{remote.name} ended early, at {size:,} of {remote.size:,} bytes"
        raise KaggleError(f"{text}: {AGAIN}; it continues where it stopped.", passing=True)
    if size > remote.size:
        damage = f"it has {size:,} bytes instead of {remote.size:,}"
    else:
        damage = _find_damage(remote, part)
    if damage and damage != _UNKNOWN:
        part.unlink()
        raise KaggleError(f"{remote.name} arrived damaged ({damage}) and was deleted: {AGAIN}.")


def _find_damage(remote: _RemoteFile, path: Path) -> str:
    """Why a file of the right size is not Kaggle's, "" if it is; reads all of it."""
    log.info(f"{remote.name}: checking {_format_bytes(remote.size)}")
    if remote.md5 is not None:
        # In base64, as Kaggle's storage writes it.
        found = base64.b64encode(bytes.fromhex(hash_file(path, "md5"))).decode()
        return "" if found == remote.md5 else "its checksum is not the one that Kaggle gives"
    if not remote.name.endswith(".zip"):
        return _UNKNOWN
    try:
        with zipfile.ZipFile(path) as archive:
            members = progress.track(archive.infolist(), remote.name, unit="files")
            for member in members:
                with archive.open(member) as file:
                    while file.read(1 << 20):  # compares the member's checksum at its end
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        return f"it is not a whole zip file: {quote_reason(str(error))}"
    return ""


def _measure(path: Path) -> int:
    """The file's size in bytes, 0 where there is no file."""
    return path.stat().st_size if path.exists() else 0


def _format_bytes(count: int) -> str:
    """Bytes as text: gigabytes from 0.1 GB on, else kilobytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e3:.1f} kB"
