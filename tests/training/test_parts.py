"""Batches in parts: how large, of what, and how many examples fit."""

import torch

from kit.training.parts import count_fitting, count_slices, split_batch


def test_parts_are_few_and_of_like_size():
    batch = {"labels": torch.arange(11), "image": torch.arange(11), "names": list("abcdefghijk")}
    sizes = {at_once: [len(part["labels"]) for part in split_batch(batch, at_once)]
             for at_once in (11, 10, 4, 1)}  # fmt: skip
    assert sizes == {11: [11], 10: [5, 6], 4: [3, 4, 4], 1: [1] * 11}
    assert torch.cat([part["image"] for part in split_batch(batch, 4)]).tolist() == list(range(11))


def test_slices_are_images_or_the_real_places_of_series():
    assert count_slices({"labels": torch.zeros(5, 6)}) == 5
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]]).bool()
    assert count_slices({"labels": torch.zeros(2, 3, 6), "mask": mask}) == 4


def test_the_images_that_fit_are_reckoned_from_two_and_four():
    gigabyte = 2**30
    # 0.6 GB an image and 1 GB whatever their number: 0.9 · 13 GB hold 17.
    two, four = int(2.2 * gigabyte), int(3.4 * gigabyte)
    assert count_fitting(13 * gigabyte, two, four) == 17
    assert count_fitting(gigabyte, two, four) == 1
