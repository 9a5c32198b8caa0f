"""An LSTM layer on the CPU, where torch's own spends its time on memory.

torch adds up the gradient of the recurrent weights step by step, 64 MB a step at 2048 units, and
its half-precision kernels lay out the weights anew each time. Here the recurrence alone runs step
by step, and each gradient of the weights is one matrix product over all steps.
"""

from __future__ import annotations

import torch
from torch import nn


def run_lstm(lstm: nn.LSTM, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A bidirectional, single-layer `nn.LSTM` over (B, T, D), mask (B, T) → (B, T, 2H).

    A padded place, wherever it stands, leaves the state of both directions as it was. Outputs are
    in the type of the weights.
    """
    inputs, outputs = inputs.to(lstm.weight_ih_l0.dtype), []
    for suffix, turn in (("", False), ("_reverse", True)):
        weights = {
            name: getattr(lstm, f"{name}_l0{suffix}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        bias = weights["bias_ih"] + weights["bias_hh"]
        gates = nn.functional.linear(inputs, weights["weight_ih"], bias).transpose(0, 1)
        real = mask.t()
        if turn:
            gates, real = gates.flip(0), real.flip(0)
        hidden = _Recurrence.apply(gates, weights["weight_hh"], real)  # (T, B, H)
        outputs.append((hidden.flip(0) if turn else hidden).transpose(0, 1))
    return torch.cat(outputs, dim=2).to(lstm.weight_ih_l0.dtype)


class _Recurrence(torch.autograd.Function):
    """Gates from the inputs (T, B, 4H), recurrent weights (4H, H), mask (T, B) → hidden (T, B, H).

    Products are in the gates' precision, which autocast lowers; the state is float32.
    """

    @staticmethod
    def forward(ctx, gates, weight, mask):
        length, batch, size = gates.shape[0], gates.shape[1], weight.shape[1]
        weight = weight.to(gates.dtype)
        cells = gates.new_zeros(length + 1, batch, size, dtype=torch.float32)
        hidden = torch.zeros_like(cells)
        activations = torch.empty_like(gates, dtype=torch.float32)
        for step in range(length):
            product = nn.functional.linear(hidden[step].to(gates.dtype), weight)
            torch.add(gates[step], product, out=activations[step])
            into, keep, new, out = activations[step].chunk(4, dim=1)
            for gate in (into, keep, out):
                gate.sigmoid_()
            new.tanh_()
            torch.addcmul(keep * cells[step], into, new, out=cells[step + 1])
            torch.mul(out, cells[step + 1].tanh(), out=hidden[step + 1])
            padded = ~mask[step]
            if padded.any():
                for state in (cells, hidden):
                    state[step + 1, padded] = state[step, padded]
        ctx.save_for_backward(weight, mask, activations, cells, hidden)
        return hidden[1:]

    @staticmethod
    def backward(ctx, gradient):
        weight, mask, activations, cells, hidden = ctx.saved_tensors
        to_gates = torch.empty_like(activations, dtype=weight.dtype)
        to_cell, to_hidden = torch.zeros_like(cells[0]), torch.zeros_like(hidden[0])
        for step in reversed(range(len(gradient))):
            to_hidden = to_hidden + gradient[step]
            into, keep, new, out = activations[step].chunk(4, dim=1)
            squashed = cells[step + 1].tanh()
            through = to_cell + to_hidden * out * (1 - squashed * squashed)
            parts = (
                through * new * into * (1 - into),
                through * cells[step] * keep * (1 - keep),
                through * into * (1 - new * new),
                to_hidden * squashed * out * (1 - out),
            )
            real = mask[step, :, None]
            to_gates[step] = torch.cat(parts, dim=1) * real
            to_cell = torch.where(real, through * keep, to_cell)
            back = (to_gates[step] @ weight).float()
            to_hidden = torch.where(real, back, to_hidden)
        to_weight = to_gates.flatten(0, 1).t() @ hidden[:-1].flatten(0, 1).to(weight.dtype)
        return to_gates, to_weight, None
