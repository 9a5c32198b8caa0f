"""Images of the training's size, kept in one file as they are first read.

For data on slow storage: from the second epoch on, an image is then a short read and a JPEG to
decode. An image is encoded and decoded when it is first read, too, so that every epoch sees the
same pixels. Each has a place of its own in the file, which leaves holes on the disk where they are
smaller than that, and its bytes do not depend on the process that wrote it, or on when.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from kit import InputError, __version__, progress
from kit.dicom.parsing import DicomError
from kit.files import hash_states
from kit.progress import log
from kit.training.distributed import rank
from kit.windowing.config import InputConfig

_HEAD = struct.Struct("<II")  # before each image: CRC-32 and length of its bytes
_BLOCK = 4096  # bytes, of a disk
_SAMPLES = 64  # images that tell the size of all
_FORM = ".jpg"
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]  # as the authors' own pipeline kept its images


class ImageCache:
    """A file of images uint8 (S, S, 1 or 3), to which any process may add the missing ones.

    `suffix` names their form to OpenCV: `.jpg`, or `.png`, which loses nothing. A file may be used
    again for the same images alone: name it by a digest of what they come from. Raises `InputError`
    for images that these forms cannot hold.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...], suffix: str):
        if shape[-1] not in (1, 3):
            raise InputError(f"--cache keeps images with 1 or 3 windows, not {shape[-1]}")
        self.path, self.count, self.suffix = path, count, suffix
        blocks = -(-(_HEAD.size + int(np.prod(shape)) * 5 // 4) // _BLOCK)
        self.room = blocks * _BLOCK  # for noise, too, which no form makes smaller
        self.opened: tuple[int, int] | None = None  # by which process, the file
        self.full = False

    def __getstate__(self) -> dict:
        return {**vars(self), "opened": None}  # a process that is not forked opens its own

    def read(self, place: int, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The image at `place`; if it is missing, what `read` returns, which is then kept.

        A full disk ends the keeping, not the reading.
        """
        file = self._open()
        found = self._find(file, place)
        if found is None:
            found = self.encode(read())
            if not self.full:
                self._write(file, place, found)
        image = np.asarray(cv2.imdecode(np.frombuffer(found, np.uint8), cv2.IMREAD_UNCHANGED))
        return image if image.ndim == 3 else image[..., None]

    def encode(self, image: np.ndarray) -> bytes:
        """The bytes of an image, which follow from its pixels alone."""
        if image.dtype != np.uint8:
            raise InputError(f"--cache keeps images of bytes, not of {image.dtype}")
        return cv2.imencode(self.suffix, image, _QUALITY)[1].tobytes()

    def estimate_bytes(self, samples: list[np.ndarray], count: int) -> int:
        """What `count` images take on the disk, by some of them."""
        sizes = [len(self.encode(image)) + _HEAD.size for image in samples]
        blocks = [-(-size // _BLOCK) for size in sizes]
        return int(np.mean(blocks) * _BLOCK * count)

    def require_room(self, needed: int) -> None:
        """Raise `InputError` where the disk has no room for `needed` bytes of this file."""
        taken = os.fstat(self._open()).st_blocks * 512
        free = shutil.disk_usage(self.path.parent).free
        if needed > taken + free:
            raise InputError(
                f"{self.path}: the images need about {needed / 1e9:.1f} GB, and "
                f"{(taken + free) / 1e9:.1f} GB are free: name another folder by --cache, or none"
            )

    def close(self) -> None:
        if self.opened is not None and self.opened[0] == os.getpid():
            os.close(self.opened[1])
        self.opened = None

    def _open(self) -> int:
        if self.opened is None or self.opened[0] != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(file, self.count * self.room)  # holes: no room on the disk yet
            self.opened = (os.getpid(), file)
        return self.opened[1]

    def _find(self, file: int, place: int) -> bytes | None:
        """The bytes of an image, if they are all there: a machine may have failed meanwhile."""
        head = os.pread(file, _HEAD.size, place * self.room)
        if len(head) < _HEAD.size:
            return None
        digest, length = _HEAD.unpack(head)
        found = os.pread(file, min(length, self.room), place * self.room + _HEAD.size)
        return found if 0 < length == len(found) and zlib.crc32(found) == digest else None

    def _write(self, file: int, place: int, found: bytes) -> None:
        content = _HEAD.pack(zlib.crc32(found), len(found)) + found
        if len(content) > self.room:
            return
        try:
            os.pwrite(file, content, place * self.room)
        except OSError as error:
            self.full = True
            log.warning(
                f"kit: {self.path}: {os.strerror(error.errno or 0)}; keeping no more images"
            )


_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextlib.contextmanager
def keep_images(folder: Path | None) -> Iterator[None]:
    """Within, trainings keep the images that they read in a file in `folder`."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def open_cache(
    slices: pd.DataFrame, config: InputConfig, read: Callable[[str, Any], np.ndarray]
) -> ImageCache | None:
    """The cache of the labelled `slices`, of all folds, in the folder of `keep_images`, if any.

    Tells its size by some of the images, which `read` returns for a path and `config`. Its name
    says which files, sizes and times it was made from, how, and by which version. Raises
    `InputError` where there is no room.
    """
    folder = _folder.get()
    if folder is None:
        return None
    paths = slices["path"].sort_index().tolist()
    samples = []
    for number in np.linspace(0, len(paths) - 1, min(len(paths), _SAMPLES)).astype(int):
        with contextlib.suppress(DicomError):  # the training tells of it
            samples.append(read(paths[number], config))
    if not samples:
        return None
    seen = {name: getattr(config, name) for name in (each.name for each in fields(InputConfig))}
    places = np.sort(slices.index.to_numpy(np.int64))
    made = f"{seen} {_FORM} {_QUALITY} {__version__} {hash_states(paths)}"
    digest = hashlib.sha256(made.encode() + places.tobytes()).hexdigest()
    path = folder / f"images-{config.image_size}px-{digest[:16]}.kit"
    cache = ImageCache(path, int(places[-1]) + 1, samples[0].shape, _FORM)
    needed = cache.estimate_bytes(samples, len(paths))
    if rank() == 0:
        progress.announce(f"{len(paths):,} images, about {needed / 1e9:.1f} GB → {path}")
    cache.require_room(needed)
    return cache
