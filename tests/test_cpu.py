"""How a CPU computes: the memory that it keeps, the images that it takes at once."""

import platform
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from kit.images import choose_batch

COUNT_FAULTS = """
import resource, sys
from kit.cpu import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
letter = sys.argv[1][:1].encode()  # a variable: a constant's product would be made once
before = 0
for _ in range(6):
    blocks = [letter * 20_500_000 for _ in range(10)]
    del blocks
    before = before or count()
print(count() - before)
"""


def count_faults(how: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, how]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keeps memory with glibc alone")
def test_memory_that_is_kept_is_not_mapped_again():
    pages = 200_000_000 / 4096
    left, kept = count_faults("leave"), count_faults("keep")
    if left < pages:
        pytest.skip("this system maps memory in huge pages")
    # Of 205 MB a round, five times: the last few stay at the end of the heap even so.
    assert left >= 5 * int(pages)
    assert kept < pages / 10


def test_a_cpu_takes_few_large_images_at_once_and_many_small_ones():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [choose_batch(size, cpu) for size in (64, 181, 224, 480, 2048)] == [32, 32, 20, 4, 1]
    assert choose_batch(480, gpu) == 32
