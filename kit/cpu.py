"""How a CPU computes best: on how many threads, in which memory."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

# Of `mallopt` in <malloc.h>: https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD, _MAP_THRESHOLD = -1, -3
_KEPT_BYTES, _MAPPED_FROM = 512 << 20, 32 << 20


def spare_threads(image_size: int) -> None:
    """Compute small images on one thread, unless OMP_NUM_THREADS says otherwise.

    At 64 pixels a second thread gains nothing, and where another program takes a core the threads
    wait for one another: measured, an epoch of 10 s became one of minutes.
    """
    if image_size <= 128 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def keep_memory() -> None:
    """Have this process keep up to 512 MB that it freed for what it asks for next.

    glibc gives memory back at once, and every step asks for it again: the system clears and maps
    each page anew. Measured on two cores, an image through ResNeXt-101 at 480 pixels takes nine
    tenths of the time. Blocks over 32 MB, as of weights and gradients, are still mapped one by
    one: kept, they broke up what was free, so that training the LSTM of 2048 units, though faster,
    took 1.4 GB more after 25 steps, and rising. Other C libraries are left as they are.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MAP_THRESHOLD, _MAPPED_FROM)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
