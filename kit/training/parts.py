"""A batch in parts that fit the card, and how many examples do."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

# What a part is not filled up to: blocks of memory do not fit one another exactly.
_USABLE = 0.9


def count_fitting(free: int, two: int, four: int) -> int:
    """How many examples fit `free` bytes, if two and four take so many; at least 1."""
    each = max(1, (four - two) / 2)
    return max(1, math.floor((_USABLE * free - (two - 2 * each)) / each))


def count_slices(batch: dict) -> int:
    """The labelled slices of a batch: its images, or the real slices of its series."""
    return int(batch["mask"].sum()) if "mask" in batch else len(batch["labels"])


def split_batch(batch: dict, at_once: int) -> list[dict]:
    """Split the tensors of a batch into the fewest parts of at most `at_once`, of like size.

    Images that several examples share (`kit.images.load_batches`) stay whole in each part.
    """
    count = len(batch["labels"])
    parts = -(-count // at_once)
    ends = [count * part // parts for part in range(parts + 1)]
    return [take_examples(batch, *pair) for pair in pairwise(ends)]


def take_examples(batch: dict, start: int, stop: int) -> dict:
    """The tensors of the examples from `start` to `stop`."""
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    shared = {"image"} if "parts" in batch else set()
    return {name: v if name in shared else v[start:stop] for name, v in tensors.items()}
