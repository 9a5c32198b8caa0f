"""The bytes of a DICOM file as its parser sees them: bounded, whatever the file claims."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

# Scanners give up to 1024 x 1024, some 2048 x 2048. What claims more than four times that was made
# to fill the memory: a coded image of a kilobyte can claim any size.
MAX_PIXELS = 4096 * 4096

# What is read of a file before its pixels: thousands of times what a header has. As every element
# costs time besides its bytes, it counts as some bytes more: that bounds the time, to a few seconds
# for millions of empty elements.
MAX_HEADER_BYTES = 1 << 26
_READ_COST = 250

MAX_SLICE_BYTES = MAX_HEADER_BYTES + 4 * MAX_PIXELS


class DeflatedError(ValueError):
    """pydicom would inflate the rest of the file at once."""


class Content:
    """The open file as pydicom sees it: it can neither read more than there is, nor for ever."""

    def __init__(self, file, size: int, stop_before_pixels: bool):
        self.size = size
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        self.read = _bound_read(file.read, size, MAX_HEADER_BYTES + size * (not stop_before_pixels))

    def inflate(self, stop_before_pixels: bool) -> Content:
        """The same file as if it had not been deflated from here on, which `read` bounds again."""
        start, inflater = self.tell(), zlib.decompressobj(-zlib.MAX_WBITS)
        rest = inflater.decompress(self._read(MAX_SLICE_BYTES), MAX_SLICE_BYTES)
        if len(rest) == MAX_SLICE_BYTES:
            raise ValueError("it inflates to more than any CT slice")
        if not inflater.eof:
            raise ValueError("what is deflated is cut short")
        self.seek(0)
        deflated, plain = (
            syntax.encode() for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian)
        )
        head = self._read(start).replace(deflated, plain.ljust(len(deflated), b"\0"))
        return Content(io.BytesIO(head + rest), len(head + rest), stop_before_pixels)


def _bound_read(read: Callable, most: int, left: int) -> Callable:
    """`read` that gives `most` bytes at once and `left` altogether, then `ValueError`.

    A closure: it is called a hundred times a header, and a method would look everything up.
    """

    def read_bounded(size: int = -1) -> bytes:
        nonlocal left
        if size < 0:
            raise DeflatedError
        if size > most:  # a length that the header claims
            size = most
        left -= size + _READ_COST
        if left < 0:
            raise ValueError("it is larger than any CT slice's")
        return read(size)

    return read_bounded
