"""The disk: files and members of zip archives, files that are whole or not there, hashes, JSON.

`archive.zip/member` is a path like any other: the member is read in place. So is the slice of a
volume, `scan.nii.gz/12`, to what reads images.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from kit import InputError, KitError

# What a member may inflate to. The largest CT slice has 64 MB of pixels, the competition's label
# file 120 MB; whatever is larger was made to fill the memory.
MAX_MEMBER_BYTES = 1 << 29


class Reason(NamedTuple):
    """Why a file cannot be used.

    `code` is a short, fixed phrase that quotes nothing: it may stand on any page and in any log.
    `detail` may quote the header and paths, and so a patient's name: it belongs in `skipped.csv`.
    """

    code: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


class FileError(KitError, OSError):
    """A file or a zip member that cannot be opened; `reason` says why, the text names it too."""

    def __init__(self, path: str | Path, code: str, detail: str = ""):
        self.reason = Reason(code, detail)
        super().__init__(f"{path}: {self.reason}")


def explain_error(error: OSError | zipfile.BadZipFile | zlib.error) -> Reason:
    """The reason that an error gives which was raised while a file was opened or read."""
    if isinstance(error, FileError):
        return error.reason
    if isinstance(error, zipfile.BadZipFile | zlib.error):
        return Reason("zip member is damaged", str(error))
    return Reason(error.strerror) if error.strerror else Reason("cannot be read", str(error))


def open_file(path: str | Path) -> BinaryIO:
    """Open a file, or a member of a zip archive written `archive.zip/member`, for reading.

    Weights, configurations and ledgers are opened by it too: they may be a stranger's.

    Raises `OSError`, of which `FileError` for what is neither a regular file nor a plain member: a
    pipe (which would wait for ever), an encrypted member, one that inflates to more than
    `MAX_MEMBER_BYTES`, and each of several members of one name, which cannot be told apart.
    """
    archive, member = split_archive(path)
    if archive is not None:
        return _open_member(path, archive, member)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileError(path, "not a regular file")
    return open(path, "rb")


def split_archive(path: str | Path) -> tuple[str | None, str]:
    """`a/b.zip/c/d` → (`a/b.zip`, `c/d`) where `a/b.zip` is a file; else (None, path)."""
    path = str(path)
    for found in re.finditer(r"\.zip/", path, re.IGNORECASE):
        archive = path[: found.end() - 1]
        if os.path.isfile(archive):
            return archive, path[found.end() :]
    return None, path


_PLANE = re.compile(r"(.+\.nii(?:\.gz)?)/(\d+)", re.IGNORECASE)


def split_plane(path: str | Path) -> tuple[str, int]:
    """`a/scan.nii.gz/12` → (`a/scan.nii.gz`, 12); another path → (path, 0)."""
    found = _PLANE.fullmatch(str(path))
    if not found or os.path.isfile(path):  # a folder may be called so
        return str(path), 0
    return found[1], int(found[2])


def find_container(path: str | Path) -> str:
    """The file on disk in which a path's bytes lie: its zip, its volume, or itself."""
    file, _ = split_plane(path)
    return split_archive(file)[0] or file


def file_size(path: str | Path, file: BinaryIO) -> int:
    """Bytes of what `open_file(path)` opened as `file`."""
    if not isinstance(file, zipfile.ZipExtFile):
        return os.fstat(file.fileno()).st_size
    archive, member = split_archive(path)
    assert archive is not None
    return _open_archive(archive)[0].getinfo(member).file_size


def measure_file(path: str | Path) -> int:
    """Bytes of a file or, inflated, of a zip member, without opening it."""
    archive, member = split_archive(path)
    if archive is None:
        return os.stat(path).st_size
    return _open_archive(archive)[0].getinfo(member).file_size


def list_archive(archive: str | Path) -> list[str]:
    """All members of a zip archive as paths, sorted. Raises `OSError` where it is none."""
    members = _open_archive(str(archive))[0].infolist()
    names = (member.filename for member in members)  # `is_dir` fails where one is empty
    return sorted(f"{archive}/{name}" for name in names if not name.endswith("/"))


_durable: ContextVar[bool] = ContextVar("durable", default=True)


@contextlib.contextmanager
def write_briefly() -> Iterator[None]:
    """Let this thread's files, which go with the block, be written without a wait for the disk."""
    token = _durable.set(False)
    try:
        yield
    finally:
        _durable.reset(token)


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a place beside `path` to write to; in the end it is moved to `path`.

    Where writing fails, what was written is removed and an earlier `path` stays as it was. An
    `OSError` then names `path`, not the place beside it.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with name_errors(path, part):
            part.unlink(missing_ok=True)  # a link there, in a stranger's folder, is not followed
            yield part
            # On the disk before it has its name: power may fail, and some disks complain only now.
            if _durable.get():
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # a disk that takes nothing lets nothing be removed
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def name_errors(path: Path, *others: Path) -> Iterator[None]:
    """Let an `OSError` that names no file, or one of `others`, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in others:
            raise
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def refuse_existing(out: Path, overwrite: bool | None = None) -> None:
    """Raise `InputError` where something is at `out`, unless `overwrite`; None: it never may."""
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        instead = "" if overwrite is None else ", or replace it by --overwrite"
        raise InputError(f"{out} exists: name another{instead}")


def open_whole(path: str | Path) -> BinaryIO:
    """As `open_file`, of a file that is read into memory as a whole: a text or a table.

    Raises `FileError` for one of more than `MAX_MEMBER_BYTES` too.
    """
    file = open_file(path)
    size = file_size(path, file)
    if size > MAX_MEMBER_BYTES:
        file.close()
        raise FileError(path, "larger than any text or table", f"{size / 1e6:.0f} MB")
    return file


def read_text(path: str | Path) -> str:
    """Read a text file. Raises `OSError`, or `InputError` naming it."""
    with open_whole(path) as file:
        content = file.read()
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises `OSError`, or `InputError` naming it."""
    try:
        return json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON that can be read ({error})") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text beside its place, then move it there."""
    with replace_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON beside its place, then move it there."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def hash_file(path: str | Path, algorithm: str = "sha256") -> str:
    """The digest of a file or zip member, in hexadecimal digits."""
    with open_file(path) as file:
        new = partial(hashlib.new, algorithm, usedforsecurity=False)
        return hashlib.file_digest(cast(Any, file), new).hexdigest()  # BinaryIO lacks `readinto`


def hash_states(paths: Iterable[str]) -> str:
    """Hash the files' names, sizes and times; for what lies in a zip or volume, those of it."""
    digest = hashlib.sha256()
    for path in paths:
        found = os.stat(find_container(path))
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_commit(folder: str | Path) -> str | None:
    """The git commit of a folder, with `-dirty` where files differ; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _open_member(path: str | Path, archive: str, member: str) -> BinaryIO:
    opened, repeated = _open_archive(archive)
    if member in repeated:
        count = f"{repeated[member]} of them"
        raise FileError(path, "one of several zip members of this name", count)
    try:
        found = opened.getinfo(member)
    except KeyError as error:
        text = "no such member in the zip archive"
        raise FileNotFoundError(errno.ENOENT, text, str(path)) from error
    if found.file_size > MAX_MEMBER_BYTES:
        code = "zip member inflates to more than any file of a head CT"
        raise FileError(path, code, f"{found.file_size / 1e6:.0f} MB")
    if found.flag_bits & 1:
        raise FileError(path, "zip member is encrypted")
    try:
        return cast(BinaryIO, opened.open(found))
    except RuntimeError as error:
        raise FileError(path, "zip member is packed by an unknown method", str(error)) from error
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:  # with a broken header of its own
        raise FileError(path, "zip member is damaged", str(error)) from error


def _open_archive(archive: str) -> tuple[zipfile.ZipFile, dict[str, int]]:
    """The archive, and how often each name that is in it more than once."""
    state = os.stat(archive)
    # Keyed by process: a handle inherited through fork would share its file position.
    return _open_version(archive, os.getpid(), state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=2)
def _open_version(archive: str, *_: int) -> tuple[zipfile.ZipFile, dict[str, int]]:
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise FileError(archive, "not a zip archive that can be read", str(error)) from error
    names = opened.namelist()
    if len(names) == len(set(names)):
        return opened, {}
    return opened, {name: count for name, count in Counter(names).items() if count > 1}
