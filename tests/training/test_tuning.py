import logging

import pytest
import torch

from kit.training import tuning
from kit.training.tuning import Tuning, choose_tuning, search_algorithms

# Seconds a batch; the order is that of the trials.
WAYS = {
    Tuning(): 1.0,
    Tuning(channels_last=False): 0.9,
    Tuning(benchmark=True): 0.8,
    Tuning(channels_last=False, benchmark=True): 0.7,
    Tuning(channels_last=False, benchmark=True, compiled=True): 0.5,
}


@pytest.mark.parametrize(
    ("batches", "tried", "chosen"),
    [
        (100, 1, Tuning()),  # 100 s at most: not worth a trial
        (200, 4, Tuning(False, True)),  # then 140 s: not worth a compilation
        (1000, 5, Tuning(False, True, True)),  # 700 s
    ],
)
def test_a_stage_tries_what_its_length_is_worth(batches, tried, chosen):
    found, noted = choose_tuning(WAYS.__getitem__, batches)
    assert found == chosen
    expected = {str(way): 1000 * seconds for way, seconds in list(WAYS.items())[:tried]}
    assert noted == expected
    assert next(iter(noted)) == "channels last"


def test_a_compilation_that_does_not_pay_is_not_used():
    slow = Tuning(False, True, True)
    found, noted = choose_tuning(lambda way: 0.75 if way == slow else WAYS[way], 1000)
    assert found == Tuning(False, True)
    assert noted["contiguous, cudnn.benchmark, compiled"] == 750


def test_ways_that_fail_are_passed_over_and_said(caplog):
    def measure(way):
        if way.compiled:
            raise RuntimeError("no C compiler\nwas found")
        if not way.channels_last:
            raise torch.cuda.OutOfMemoryError("too little")
        return WAYS[way]

    with caplog.at_level(logging.INFO, "kit"):
        found, noted = choose_tuning(measure, 10_000)
    assert found == Tuning(True, True)
    assert len(noted) == 2
    assert "channels last, cudnn.benchmark, compiled (no C compiler)" in caplog.text
    assert "contiguous (too little)" in caplog.text


def test_the_first_way_must_work():
    def measure(way):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        choose_tuning(measure, 1)


@pytest.mark.parametrize("before", [False, True])
def test_the_search_of_algorithms_is_the_callers_again_afterwards(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with pytest.raises(ValueError, match="stop"):
        change_and_stop()
    assert torch.backends.cudnn.benchmark is before


def change_and_stop():
    with search_algorithms(Tuning(benchmark=True)):
        assert torch.backends.cudnn.benchmark
        with search_algorithms(Tuning()):
            assert not torch.backends.cudnn.benchmark
        raise ValueError("stop")


@pytest.mark.gpu
def test_time_is_measured_until_the_gpu_is_done():
    gpu = torch.device("cuda", 0)
    matrix = torch.randn(8192, 8192, device=gpu, dtype=torch.float16)
    seconds = tuning.time_batches(lambda: matrix @ matrix, gpu)
    assert seconds > 1e12 / 2e15  # 1.1e12 operations; no card makes 2e15 a second
