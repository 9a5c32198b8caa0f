"""A DICOM file's bytes → the elements in them, or why there are none."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import pydicom
import pydicom.config
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from kit import KitError
from kit.dicom.content import MAX_SLICE_BYTES, Content, DeflatedError
from kit.files import file_size, open_file

# The competition's UIDs read `ID_…`, of which pydicom would warn once a tag; its other warnings
# quote the header, and so the patient's name. What matters here is checked here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")

# What pydicom and its decoders raise on broken bytes: the header's structure, its values, or the
# pixels' coding.
PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)

# The first group of a file that was saved without the 128 bytes and `DICM` in front.
_BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")

# What a plain file has after its first 128 bytes: the length of the file meta comes first.
_PLAIN_START = b"DICM\x02\x00\x00\x00UL\x04\x00"
_PLAIN_BYTES = 1 << 14  # the competition's headers have one thousand, most scanners' some more
# Of a zip's member as many as `zipfile` unpacks at once: damage behind a header must not cost it.
_MEMBER_BYTES = 1 << 12

# Whether the elements' types are left out, by transfer syntax. The others (big-endian, deflated,
# private) need more care.
_PLAIN_SYNTAXES = {
    syntax: syntax == ImplicitVRLittleEndian
    for syntax in (
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        RLELossless,
        *JPEGTransferSyntaxes,
        *JPEGLSTransferSyntaxes,
        *JPEG2000TransferSyntaxes,
    )
}
_TRANSFER_SYNTAX = 0x00020010
_PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_PIXEL_STARTS = {bytes((0xE0, 0x7F, tag & 0xFF, 0)) for tag in _PIXEL_TAGS}


class DicomError(KitError, ValueError):
    """A file that gives no CT slice. `reason` says why; the text names the file too."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


class UnreadableError(DicomError):
    """Not there, not permitted, or not a DICOM file."""


class MissingError(UnreadableError):
    """Not there, or not permitted: what is wrong is not in the file."""


def parse_file(
    path: str | Path, tags: list[int] | None = None
) -> tuple[pydicom.Dataset, Mapping, int]:
    """The parsed file, its file meta by keyword, and how many bytes follow what was parsed.

    With `tags` those elements alone, and nothing from the pixels on. Raises `UnreadableError`.
    """
    try:
        with open_file(path) as file:
            size = file_size(path, file)
            if tags is None and size > MAX_SLICE_BYTES:
                raise UnreadableError(path, f"{size / 1e6:.0f} MB are no CT slice")
            return (tags and _parse_plain(file, size, tags)) or _parse(file, size, tags, path)
    except (FileNotFoundError, PermissionError) as error:
        raise MissingError(path, error.strerror or str(error)) from error
    except (OSError, zipfile.BadZipFile) as error:
        raise UnreadableError(path, getattr(error, "strerror", None) or str(error)) from error
    except DicomError:
        raise
    except PARSE_ERRORS as error:
        raise UnreadableError(
            path, f"the header cannot be parsed ({describe_error(error)})"
        ) from error


def _parse_plain(
    file: BinaryIO, size: int, tags: list[int]
) -> tuple[pydicom.Dataset, Mapping, int] | None:
    """As `_parse`, in two fifths of its time, of a short header as the standard has it; else None.

    `dcmread` asks the file for eight bytes at a time, and makes an object of the file meta, of
    which the transfer syntax alone is of use.
    """
    start = file.read(_MEMBER_BYTES if isinstance(file, zipfile.ZipExtFile) else _PLAIN_BYTES)
    if not start.startswith(_PLAIN_START, 128):
        return None
    content = io.BytesIO(start)
    content.seek(132)
    try:
        elements = data_element_generator(
            content, False, True, stop_when=_is_past_file_meta, specific_tags=[_TRANSFER_SYNTAX]
        )
        values = {element.tag: element.value for element in elements}
        syntax = values.get(_TRANSFER_SYNTAX, b"").decode("ascii").rstrip("\0 ")
        implicit = _PLAIN_SYNTAXES.get(syntax)
        if implicit is None or start[content.tell()] == 0:  # a group of commands
            return None
        dataset = read_dataset(content, implicit, True, stop_when=_is_pixel_tag, specific_tags=tags)
    except (*PARSE_ERRORS, OSError):  # the latter from pydicom: the bytes are read
        return None  # what is wrong is said by who reads with care
    end = content.tell()
    as_declared = dataset and dataset.original_encoding[0] == implicit
    if not as_declared or start[end : end + 4] not in _PIXEL_STARTS:
        return None
    return dataset, {"TransferSyntaxUID": syntax}, size - end


def _is_past_file_meta(tag: int, *_: object) -> bool:
    return tag >> 16 != 2


def _is_pixel_tag(tag: int, *_: object) -> bool:
    return tag in _PIXEL_TAGS


def _parse(
    file: BinaryIO, size: int, tags: list[int] | None, path: str | Path
) -> tuple[pydicom.Dataset, Mapping, int]:
    """As `parse_file`, whatever the file's form."""
    file.seek(0)
    stop = tags is not None
    content = Content(file, size, stop)
    try:
        dataset = pydicom.dcmread(content, stop_before_pixels=stop, specific_tags=tags)
    except DeflatedError:
        content = content.inflate(stop)
        dataset = pydicom.dcmread(content, stop_before_pixels=stop, specific_tags=tags)
    except InvalidDicomError as error:
        content.seek(0)
        bare = content.read(2) in _BARE_STARTS
        content.seek(0)
        dataset = {}
        if bare:
            dataset = pydicom.dcmread(
                content, stop_before_pixels=stop, specific_tags=tags, force=True
            )
        if "Modality" not in dataset:
            raise UnreadableError(path, "not a DICOM file") from error
    return dataset, dataset.file_meta, content.size - content.tell()


def describe_error(error: BaseException) -> str:
    """What an exception says, on one line, without what it quotes."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"""b?(["']).*?\1""", "…", text)[:200]
