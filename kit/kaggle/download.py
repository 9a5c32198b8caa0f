"""Download the competition's files: resumed where it broke off, verified, renamed when whole."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from kit.competition import SLUG
from kit.kaggle.connection import (
    RETRY_DELAYS,
    TIMEOUT,
    CompetitionClient,
    KaggleError,
    explain,
    read_retry_after,
)
from kit.progress import open_bar

CHUNK = 1 << 16  # bytes; the one that a broken connection cuts short is lost


@dataclass(frozen=True)
class RemoteFile:
    """A file as Kaggle's storage describes it.

    `size` is in bytes, `version` (ETag or date) tells one state of the file from another, `md5` is
    its checksum where Kaggle gives one, `request` fetches it and holds for some minutes only.
    """

    name: str
    size: int
    version: str
    md5: str | None
    request: requests.PreparedRequest

    def part(self, directory: Path) -> Path:
        """Where the file grows; another version of it grows elsewhere."""
        state = hashlib.sha256(f"{self.version} {self.size}".encode()).hexdigest()[:12]
        return directory / f"{self.name}.{state}.part"


def download_competition(
    directory: str | Path,
    competition: str = SLUG,
    files: Sequence[str] = (),
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Download the competition's one zip, or only `files`, into `directory`; the finished paths.

    Says first how much disk it needs and refuses when there is too little. Run again, it goes on
    where it broke off, and leaves whole files alone. (Listing the competition's files would take
    thousands of requests; slices are read from the zip as it is.) Raises `KaggleError`.
    """
    directory = Path(directory)
    client = CompetitionClient(competition, sleep)
    remotes = [describe_file(client, name) for name in files or [None]]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        check_disk(remotes, directory)
        return [
            fetch_file(client, remote, name, directory)
            for remote, name in zip(remotes, files or [None], strict=True)
        ]
    except OSError as error:
        raise KaggleError(
            f"{error.filename or directory}: the download cannot be written ({error.strerror}): "
            "make room or choose another folder, and run the same command again."
        ) from None


def describe_file(client: CompetitionClient, name: str | None) -> RemoteFile:
    """Ask Kaggle for a file of the competition, or with None for the zip of them all."""
    try:
        if name is None:
            answer = client.call("DownloadDataFiles")
        else:
            answer = client.call("DownloadDataFile", file_name=name)
    except KaggleError as error:
        if error.status == 404 and name is not None:
            raise KaggleError(
                f"Kaggle does not know {name} in {client.competition}: check the spelling of both "
                "names (HTTP 404).",
                404,
            ) from None
        raise
    answer.close()
    headers = answer.headers
    version = headers.get("ETag") or headers.get("Last-Modified")
    local = name or f"{client.competition}.zip"
    if "Content-Length" not in headers or "Content-Encoding" in headers or version is None:
        raise KaggleError(
            f"Kaggle gives no size or version for {local}, so that it cannot be verified: download "
            "the competition's zip instead."
        )
    # Large files are zipped one by one on Kaggle's side, which shows in the address alone.
    if answer.url.split("?")[0].endswith(".zip") and not local.endswith(".zip"):
        local += ".zip"
    md5 = re.search(r"md5=([A-Za-z0-9+/]+=*)", headers.get("x-goog-hash", ""))
    size = int(headers["Content-Length"])
    return RemoteFile(local, size, version, md5 and md5[1], answer.request)


def check_disk(remotes: Sequence[RemoteFile], directory: Path) -> None:
    """Say what will be downloaded and how much disk that takes; refuse when there is too little."""
    needed = 0
    for remote in remotes:
        present = min(measure(directory / remote.name), remote.size)
        if present < remote.size:
            present = min(measure(remote.part(directory)), remote.size)
        needed += remote.size - present
        print(f"{remote.name}: {format_bytes(remote.size)}, {format_bytes(present)} of it here")
    free = shutil.disk_usage(directory).free
    need = f"{format_bytes(needed)} of disk needed in {directory}, {format_bytes(free)} free"
    print(need, flush=True)
    if needed > free:
        raise KaggleError(
            f"Not enough disk: {need}; make room or choose another folder; nothing was downloaded."
        )


def fetch_file(
    client: CompetitionClient, remote: RemoteFile, name: str | None, directory: Path
) -> Path:
    """Download one file, verify it, and give it its name; its path.

    Gives up after five failures in a row without a new byte; a large file may break off often.
    """
    failures = 0
    while measure(directory / remote.name) != remote.size:
        part = remote.part(directory)
        part.parent.mkdir(parents=True, exist_ok=True)
        before = measure(part)
        try:
            transfer(remote, part)
            verify(remote, part)
            os.replace(part, directory / remote.name)
            break
        except KaggleError as error:
            failures = 0 if measure(part) > before else failures + 1
            if not error.passing or failures > len(RETRY_DELAYS):
                raise
            wait = max(RETRY_DELAYS[max(failures - 1, 0)], error.retry_after or 0)
            print(f"{remote.name}: broke off; going on in {wait:g} s", file=sys.stderr, flush=True)
        client.sleep(wait)
        remote = describe_file(client, name)  # the last address may have run out
    return directory / remote.name


def transfer(remote: RemoteFile, part: Path) -> None:
    """Append to `part` what is still missing of the file, or start anew where that is not sure."""
    for stale in part.parent.glob(f"{Path(remote.name).name}.*.part"):
        if stale != part:
            stale.unlink()
    start = measure(part)
    if start == remote.size:
        return
    start = start if start < remote.size else 0
    try:
        with open_stream(remote, start) as answer:
            if answer.status_code != 206:
                start = 0
            write_stream(answer, remote, part, start)
    except requests.RequestException as error:
        raise explain(error, remote.name) from None


def open_stream(remote: RemoteFile, start: int) -> requests.Response:
    """The storage's answer from byte `start` on: 206 the rest, 200 the whole file."""
    request = remote.request.copy()
    request.headers["Accept-Encoding"] = "identity"  # the bytes as they are counted
    if start:
        request.headers["Range"] = f"bytes={start}-"
    session = requests.Session()
    settings = session.merge_environment_settings(request.url, {}, True, None, None)
    answer = session.send(request, timeout=TIMEOUT, **settings)
    if answer.status_code not in (200, 206):
        raise KaggleError(
            f"Kaggle's storage did not give {remote.name} (HTTP {answer.status_code}): wait a few "
            "minutes, and run the same command again; it goes on where it stopped.",
            answer.status_code,
            passing=True,
            retry_after=read_retry_after(answer),
        )
    expected = f"bytes {start}-{remote.size - 1}/{remote.size}"
    if answer.status_code == 206 and answer.headers.get("Content-Range") != expected:
        raise KaggleError(
            f"Kaggle's storage went on with {remote.name} at another place than asked: run the "
            "same command again.",
            passing=True,
        )
    return answer


def write_stream(answer: requests.Response, remote: RemoteFile, part: Path, start: int) -> None:
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


def verify(remote: RemoteFile, part: Path) -> None:
    """Raise `KaggleError` unless `part` is the whole file; a damaged one is deleted."""
    if measure(part) < remote.size:
        raise KaggleError(
            f"{remote.name} ended early, at {measure(part):,} of {remote.size:,} bytes: run the "
            "same command again; it goes on where it stopped.",
            passing=True,
        )
    reason = None
    if measure(part) > remote.size:
        reason = f"it has {measure(part):,} bytes instead of {remote.size:,}"
    elif remote.md5 is not None and compute_md5(part) != remote.md5:
        reason = "its checksum is not the one that Kaggle gives"
    elif remote.name.endswith(".zip") and not is_whole_zip(part):
        reason = "it is not a whole zip file"
    if reason is not None:
        part.unlink()
        raise KaggleError(
            f"{remote.name} arrived damaged ({reason}) and was deleted: run the same command again."
        )


def compute_md5(path: Path) -> str:
    """The file's MD5 in base64, as Kaggle's storage writes it."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode()


def is_whole_zip(path: Path) -> bool:
    """Whether the zip's list of files, which stands at its end, can be read."""
    try:
        with zipfile.ZipFile(path):
            return True
    except zipfile.BadZipFile:
        return False


def measure(path: Path) -> int:
    """The file's size in bytes, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def format_bytes(count: int) -> str:
    """A number of bytes for people: gigabytes from a tenth of one on, else kilobytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e3:.1f} kB"
