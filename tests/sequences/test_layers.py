"""Recurrent layers over padded batches: each series as if it were alone."""

import pytest
import torch
from torch import nn

from kit.sequences.layers import run_packed, run_padded

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# The real slices of each series.
MASKS = {
    "unpadded": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "one slice": [[1]],
    "unequal lengths": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]],
    "front padding": [[0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]],
    "padding between slices": [[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("places", MASKS)
@pytest.mark.parametrize("run_layer", [run_packed, run_padded])
def test_both_routes_equal_the_plain_layer_in_float64(run_layer, places, device, monkeypatch):
    """Outputs and gradients: packed as for each series alone, padded as if padding were slices."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    lstm = nn.LSTM(5, 6, bidirectional=True, batch_first=True)
    mask = torch.tensor(MASKS[places], dtype=torch.bool)
    inputs, weights = torch.randn(*mask.shape, 5), torch.randn(*mask.shape, 12)
    exact = nn.LSTM(5, 6, bidirectional=True, batch_first=True).double()
    exact.load_state_dict(lstm.state_dict())
    taken = mask if run_layer is run_packed else torch.ones_like(mask)
    alone = [exact(row[real][None].double())[0][0] for row, real in zip(inputs, taken, strict=True)]
    (torch.cat(alone) * weights[taken]).sum().backward()
    lstm.to(device)
    given = inputs.to(device).requires_grad_()
    outputs = run_layer(lstm, given, mask.to(device))
    assert outputs.shape == (*mask.shape, 12)
    (outputs[taken.to(device)] * weights[taken].to(device)).sum().backward()
    found = outputs[taken.to(device)].detach().cpu().double()
    torch.testing.assert_close(found, torch.cat(alone).detach(), atol=1e-5, rtol=1e-5)
    for value, expected in zip(lstm.parameters(), exact.parameters(), strict=True):
        gradient = value.grad.cpu().double()
        torch.testing.assert_close(gradient, expected.grad, atol=2e-5, rtol=1e-4)
    assert given.grad.cpu()[~taken].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("run_layer", [run_packed, run_padded])
def test_a_cpu_computes_the_layers_in_float32_at_every_opt_level(run_layer, dtype):
    """Without AVX-512, oneDNN has no LSTM in bfloat16, in which autocast and O2 would run it."""
    torch.manual_seed(0)
    lstm = nn.LSTM(5, 6, bidirectional=True, batch_first=True).to(dtype)
    inputs, mask = torch.randn(2, 4, 5).to(dtype), torch.ones(2, 4, dtype=torch.bool)
    exact = nn.LSTM(5, 6, bidirectional=True, batch_first=True)
    exact.load_state_dict(lstm.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run_layer(lstm, inputs, mask)
    assert outputs.dtype == dtype
    expected = exact(inputs.float())[0].to(dtype)
    torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=1e-6)
    outputs.float().sum().backward()
    assert lstm.weight_hh_l0_reverse.grad.dtype == dtype
