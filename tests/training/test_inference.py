import pytest
import torch

from kit.training import inference

CPU = torch.device("cpu")


def make_batches(seen, count=5):
    for number in range(count):
        seen.append(number)
        yield {"values": torch.full((2,), float(number)), "name": f"batch {number}"}


@pytest.mark.parametrize("lag", [0, 2, 9])
def test_outputs_come_in_order_while_later_batches_are_computed(monkeypatch, lag):
    monkeypatch.setattr(inference, "choose_lag", lambda device: lag)
    seen, begun = [], []
    for batch, (double, half) in inference.predict(
        lambda batch: (batch["values"] * 2, batch["values"] / 2), make_batches(seen), CPU, "O0"
    ):
        number = len(begun)
        begun.append(len(seen))
        assert batch["name"] == f"batch {number}"
        assert double.tolist() == [2 * number] * 2
        assert half.tolist() == [number / 2] * 2
    assert begun == [min(number + 1 + lag, 5) for number in range(5)]


def test_a_single_tensor_stays_one():
    (found,) = inference.predict(lambda batch: batch["values"] + 1, make_batches([], 1), CPU, "O0")
    assert found[1].tolist() == [1.0, 1.0]


def test_moving_a_batch_keeps_what_is_no_tensor():
    values = torch.ones(2)
    moved = inference.move_batch({"values": values, "names": ["a"]}, CPU)
    assert moved["values"].data_ptr() == values.data_ptr()
    assert moved["names"] == ["a"]


@pytest.mark.gpu
def test_a_gpu_does_not_wait_for_the_outputs_of_a_batch():
    gpu = torch.device("cuda", 0)
    matrix = torch.randn(4096, 4096, device=gpu)

    def forward(batch):
        result = matrix
        for _ in range(20):
            result = result @ matrix * 1e-2
        return result[:2, :2].float() * 0 + batch["values"]

    torch.cuda.set_sync_debug_mode("error")  # any copy or read that waits raises
    try:
        found = [output for _, output in inference.predict(forward, make_batches([]), gpu)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [output[0, 0].item() for output in found] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert all(output.is_pinned() for output in found)
