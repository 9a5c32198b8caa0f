"""Recurrent layers over series of different lengths."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_sequence


def run_packed(layer: nn.RNNBase, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a layer over the real slices alone: (B, T, D), mask (B, T) → (B, T, 2H), zeros elsewhere.

    The padding may be anywhere in a series; each series needs at least one real slice. Where the
    mask is on the CPU, no GPU is waited for.
    """
    positions = torch.arange(mask.numel()).view(mask.shape)
    series = [row[real] for row, real in zip(positions, mask.cpu(), strict=True)]
    order = pack_sequence(sorted(series, key=len, reverse=True))
    rows = order.data.to(inputs.device, non_blocking=True)
    real = inputs.flatten(0, 1).index_select(0, rows)
    hidden = _call_layer(layer, PackedSequence(real, order.batch_sizes)).data
    outputs = hidden.new_zeros(mask.numel(), hidden.shape[1]).index_copy(0, rows, hidden)
    return outputs.view(*mask.shape, -1)


def run_padded(layer: nn.RNNBase, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run a layer over all positions, padding included, as the reference implementation does."""
    return _call_layer(layer, inputs)


_Sequences = TypeVar("_Sequences", torch.Tensor, PackedSequence)


def _call_layer(layer: nn.RNNBase, inputs: _Sequences) -> _Sequences:
    """The outputs of a layer, in the type of its weights; on a CPU computed in float32 at least.

    A CPU without AVX-512 lacks the LSTM of oneDNN in bfloat16: "could not create a primitive
    descriptor".
    """
    if inputs.is_cuda:
        return layer(inputs)[0]
    dtype = next(layer.parameters()).dtype
    exact = torch.promote_types(dtype, torch.float32)
    weights = {name: value.to(exact) for name, value in layer.named_parameters()}
    with torch.autocast("cpu", enabled=False):
        return functional_call(layer, weights, (inputs.to(exact),))[0].to(dtype)
