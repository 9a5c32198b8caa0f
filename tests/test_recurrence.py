import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kit.recurrence import run_lstm

LENGTHS = (7, 3, 1, 5)


def make_layer():
    torch.manual_seed(0)
    lstm = nn.LSTM(5, 6, bidirectional=True, batch_first=True)
    inputs = torch.randn(len(LENGTHS), max(LENGTHS), 5)
    return lstm, inputs, torch.randn(len(LENGTHS), max(LENGTHS), 12)


def run_torch(lstm, inputs, lengths):
    """torch's own layer over the first `lengths` places of each series."""
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True)[0]


def mask_of(lengths, front):
    places = torch.arange(max(lengths))
    real = places[None] < torch.tensor(lengths)[:, None]
    return real.flip(1) if front else real


@pytest.mark.parametrize("front", [False, True])
def test_outputs_and_gradients_are_those_of_torch_over_packed_series(front):
    lstm, inputs, weights = make_layer()
    mask = mask_of(LENGTHS, front)
    behind = torch.zeros_like(inputs)
    behind[mask_of(LENGTHS, False)] = inputs[mask]
    behind.requires_grad_()
    expected = run_torch(lstm, behind, LENGTHS)[mask_of(LENGTHS, False)]
    (expected * weights[mask]).sum().backward()
    gradients = [value.grad.clone() for value in lstm.parameters()]
    lstm.zero_grad()
    inputs.requires_grad_()
    found = run_lstm(lstm, inputs, mask)[mask]
    (found * weights[mask]).sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for value, gradient in zip(lstm.parameters(), gradients, strict=True):
        torch.testing.assert_close(value.grad, gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        inputs.grad[mask], behind.grad[mask_of(LENGTHS, False)], atol=1e-6, rtol=1e-4
    )
    assert inputs.grad[~mask].abs().max() == 0


def test_a_padded_place_between_slices_is_passed_over():
    lstm, inputs, _ = make_layer()
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[0, 3] = False
    expected = lstm(inputs[:1][mask][None])[0]
    torch.testing.assert_close(run_lstm(lstm, inputs[:1], mask)[mask][None], expected)


def test_half_precision_stays_near_float32_and_trains():
    lstm, inputs, weights = make_layer()
    mask = mask_of(LENGTHS, True)
    expected = run_lstm(lstm, inputs, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = run_lstm(lstm, inputs, mask)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    (found * weights).sum().backward()
    half = lstm.weight_hh_l0_reverse.grad.clone()
    lstm.zero_grad()
    (expected * weights).sum().backward()
    exact = lstm.weight_hh_l0_reverse.grad
    assert (half - exact).abs().max() < 0.03 * exact.abs().max()
    assert half.dtype == torch.float32
