import numpy as np
import pytest
import torch

from kit.processes.reading import read_batches


def read(number):
    """The batch of a number: as many arrays of that one value."""
    return {"number": number, "image": [np.full((2, 3), number, np.float32)] * number}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_in_order_with_images_that_nobody_writes_to(workers):
    found = list(read_batches(read, 12, 11 * 6 * 4, workers))
    assert [batch["number"] for batch in found] == list(range(12))
    assert found[0]["image"] is None
    for number, batch in enumerate(found[1:], start=1):
        assert torch.equal(batch["image"], torch.full((number, 2, 3), float(number)))


def test_nothing_is_read_where_there_is_nothing():
    assert list(read_batches(read, 0, 0, 2)) == []
