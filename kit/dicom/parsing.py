"""A DICOM file's bytes → the elements in them, or why there are none."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pydicom
import pydicom.config
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import TagListType
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from kit import KitError, escape_controls
from kit.files import Reason, explain_error, file_size, open_file

# What pydicom and its decoders raise on broken bytes: the header's structure, its values, or the
# pixels' coding.
PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)

# Scanners write up to 1024 x 1024 pixels, some 2048 x 2048. A file that claims more than four
# times that was made to fill the memory: a compressed image of a kilobyte can claim any size.
MAX_PIXELS = 4096 * 4096

# Upper bound on the bytes read before the pixel data; real headers take a few kilobytes. Each
# element is charged 250 extra bytes, so that a file of millions of empty elements is refused
# within seconds.
_MAX_HEADER_BYTES = 1 << 26
_READ_COST = 250

MAX_SLICE_BYTES = _MAX_HEADER_BYTES + 4 * MAX_PIXELS

# The first group of a file that was saved without the 128 bytes and `DICM` in front.
_BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")

# Most headers fit into the first bytes, which are parsed in memory: faster than a read per value.
# For zip members, read one zipfile buffer only, so that corruption after the header does not lose
# the header.
_START_BYTES = 1 << 14
_MEMBER_START_BYTES = 1 << 12
_PIXEL_GROUP = b"\xe0\x7f"
_ELEMENT_BYTES = 16  # of an element's tag, type and length, and the first ones of its value

_PAIR = b"ni1\0"  # in the header of a NIfTI image whose values are in another file

# Place and bytes by which what lies among scans is told from DICOM, and what it is.
_FORMS = (
    (0, b"PK\x03\x04", "a zip archive; unpack it first"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "packed by gzip; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (0, b"Rar!", "a RAR archive; unpack it first"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"NRRD0", "an NRRD image; write it as .nii"),
    (0, b"%PDF", "a PDF document"),
    (344, b"n+1\0", "a NIfTI image whose name does not end in .nii"),
    (344, _PAIR, "the header of a NIfTI pair; write it as one .nii file"),
)


class DicomError(KitError, ValueError):
    """A file that gives no CT slice.

    `code` is a fixed phrase that quotes nothing; `detail` may quote the header and paths; `reason`
    is both; the text names the file too.
    """

    def __init__(self, path: str | Path, code: str, detail: str = ""):
        self.path, self.code, self.detail = str(path), code, detail
        self.reason = str(Reason(code, detail))
        super().__init__(f"{path}: {self.reason}")

    def __reduce__(self):
        return type(self), (self.path, self.code, self.detail)


class Parsed(NamedTuple):
    """What was parsed of a file, the first bytes behind it, and how many bytes these are part of.

    They are the Pixel Data element's, if the elements before it were asked for and it is there.
    """

    dataset: FileDataset
    next_bytes: bytes
    bytes_left: int


class UnreadableError(DicomError):
    """Not there, not permitted, or not a DICOM file."""


class MissingError(UnreadableError):
    """Not there, or not permitted: what is wrong is not in the file."""


def parse_file(path: str | Path, tags: TagListType | None = None) -> Parsed:
    """Parse a file. With `tags`, read these elements alone, and nothing from the pixels on.

    Raises `UnreadableError`.
    """
    try:
        with open_file(path) as file:
            size = file_size(path, file)
            if tags is None and size > MAX_SLICE_BYTES:
                raise UnreadableError(path, "larger than any CT slice", f"{size / 1e6:.0f} MB")
            parsed = None if tags is None else _parse_start(file, size, tags)
            if parsed is None:
                file.seek(0)
                parsed = _parse_bounded(_BoundedFile(file, size, tags is not None), tags)
            if parsed is None:
                file.seek(0)
                raise UnreadableError(path, "not a DICOM file", _name_form(path, file.read(512)))
            return parsed
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        missing = isinstance(error, FileNotFoundError | PermissionError)
        reason = explain_error(error)
        raise (MissingError if missing else UnreadableError)(path, *reason) from error
    except DicomError:
        raise
    except PARSE_ERRORS as error:
        raise UnreadableError(path, "header cannot be parsed", describe_error(error)) from error


@contextlib.contextmanager
def read_leniently() -> Iterator[None]:
    """Have pydicom accept values that break the standard's rules, and warn of nothing, meanwhile.

    The competition's UIDs read `ID_…`, of which pydicom would warn once per element, and a warning
    quotes the header, possibly the patient's name. What matters is checked in `header`.
    pydicom's mode and the warning filters belong to the whole process: the first reader among all
    threads sets them and the last one restores them.
    """
    global _readers
    with _lock:
        if _readers == 0:
            _settings.enter_context(pydicom.config.disable_value_validation())
            _settings.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _settings.close()


_lock, _settings, _readers = threading.Lock(), contextlib.ExitStack(), 0


def parse_numbers(text: str) -> tuple[float, ...] | None:
    """The numbers of a DICOM text such as `-125\\0\\30`; None if a part of it is not a number."""
    try:
        return tuple(map(float, text.split("\\")))
    except ValueError:
        return None


def describe_error(error: BaseException) -> str:
    """An exception's text on one line, without what it quotes."""
    text = " ".join(str(error).split()) or type(error).__name__
    return escape_controls(re.sub(r"""b?(["']).*?\1""", "…", text)[:200])


def _name_form(path: str | Path, start: bytes) -> str:
    """What a file is that is not DICOM, by its first bytes; empty where they do not tell."""
    for place, magic, form in _FORMS:
        if start[place:].startswith(magic):
            return form
    if start[:2] == b"BM" and start[6:10] == bytes(4):  # two letters alone may begin a text
        return "a BMP image"
    return "the values of a NIfTI pair; write it as one .nii file" if _has_header(path) else ""


def _has_header(path: str | Path) -> bool:
    """Whether a file is the `.img` of a NIfTI pair, of which its own bytes tell nothing."""
    base, ending = os.path.splitext(path)
    if ending.lower() != ".img":
        return False
    with contextlib.suppress(OSError, zipfile.BadZipFile), open_file(f"{base}.hdr") as file:
        return file.read(512)[344:].startswith(_PAIR)
    return False


def _parse_start(file: BinaryIO, size: int, tags: TagListType) -> Parsed | None:
    """`parse_file` of a header that lies within the file's first bytes; None if it does not."""
    member = isinstance(file, zipfile.ZipExtFile)
    start = file.read(_MEMBER_START_BYTES if member else _START_BYTES)
    content = io.BytesIO(start)
    try:
        dataset = pydicom.dcmread(content, stop_before_pixels=True, specific_tags=tags)
    except (*PARSE_ERRORS, OSError):  # the latter by pydicom too: the bytes have been read
        return None
    end = content.tell()
    # Elsewhere parsing also ends where the bytes do, or where pydicom gives up.
    if start[end : end + 2] != _PIXEL_GROUP or end + _ELEMENT_BYTES > len(start):
        return None
    return Parsed(dataset, start[end : end + _ELEMENT_BYTES], size - end)


def _parse_bounded(file: _BoundedFile, tags: TagListType | None) -> Parsed | None:
    """`parse_file` of a file in any form; None if it is not DICOM."""
    stop = tags is not None
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=stop, specific_tags=tags)
    except _DeflatedError:
        file = file.inflate(stop)
        dataset = pydicom.dcmread(file, stop_before_pixels=stop, specific_tags=tags)
    except InvalidDicomError:
        file.seek(0)
        if file.read(2) not in _BARE_STARTS:
            return None
        file.seek(0)
        dataset = pydicom.dcmread(file, stop_before_pixels=stop, specific_tags=tags, force=True)
        if "Modality" not in dataset:
            return None
    left = file.size - file.tell()
    return Parsed(dataset, file.read(_ELEMENT_BYTES), left)


class _DeflatedError(ValueError):
    """pydicom would inflate the rest of the file at once."""


class _BoundedFile:
    """An open file as pydicom sees it: whatever its header claims, reading it comes to an end."""

    def __init__(self, file: BinaryIO, size: int, stop_before_pixels: bool):
        self.size = size
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        limit = _MAX_HEADER_BYTES + (0 if stop_before_pixels else size)
        self.read: Any = _bound_read(file.read, size, limit)

    def inflate(self, stop_before_pixels: bool) -> _BoundedFile:
        """The same file as if it had not been deflated from here on, with bounds of its own."""
        start, inflater = self.tell(), zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            rest = inflater.decompress(self._read(MAX_SLICE_BYTES), MAX_SLICE_BYTES)
        except zlib.error as error:
            raise ValueError(f"its deflated part is damaged: {error}") from error
        if len(rest) == MAX_SLICE_BYTES:
            raise ValueError("it inflates to more than any CT slice")
        if not inflater.eof:
            raise ValueError("its deflated part is cut short")
        self.seek(0)
        deflated, plain = (
            syntax.encode() for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian)
        )
        head = self._read(start).replace(deflated, plain.ljust(len(deflated), b"\0"))
        return _BoundedFile(io.BytesIO(head + rest), len(head + rest), stop_before_pixels)


def _bound_read(read: Callable[[int], bytes], most: int, left: int) -> Callable[[int], bytes]:
    """`read` limited to `most` bytes per call and `left` bytes in total, then `ValueError`.

    A closure, as it is called a hundred times per header.
    """

    def read_bounded(size: int = -1) -> bytes:
        nonlocal left
        if size < 0:
            raise _DeflatedError
        if size > most:  # a length that the header claims; quicker than `min`
            size = most
        left -= size + _READ_COST
        if left < 0:
            raise ValueError("it is larger than any CT slice's")
        return read(size)

    return read_bounded
