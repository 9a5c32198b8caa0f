"""The second sequence model: a GRU over embedding and position, with attention over a series."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kit.competition import LABELS
from kit.sequences.layers import run_packed
from kit.training.config import LSTMConfig

_ATTENTION = 128  # units of the attention over slices, as released


class SequenceGRU(nn.Module):
    """Logits for every slice of a series, and for the series, from the embeddings of its slices.

    The embedding is projected and its position in the series, 0 to 1, joined; two bidirectional GRU
    layers; a linear layer for each slice, and an attention over slices for each label of the
    series. Of a series longer than `config.longest_series` it sees as many slices, evenly spread;
    the others take the logits of the nearest. Names and arithmetic are those of the model that
    `ianpan/ct-head-hemorrhage-detection` released.
    """

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.config = config
        embedding, hidden = config.embedding_size, config.hidden_size
        self.input_norm = nn.LayerNorm(embedding)
        self.projection = nn.Linear(embedding, embedding)
        self.projection_norm = nn.LayerNorm(embedding)
        self.sequence = nn.GRU(
            embedding + 1, hidden, num_layers=2, bidirectional=True, batch_first=True
        )
        self.slice_head = nn.Linear(hidden * 2, len(LABELS))
        self.sequence_pool = AttentionPool(hidden * 2)

    def forward(
        self, embeddings: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, T, E) and mask (B, T) → logits of slices (B, T, 6), of series (B, 6).

        Neither depends on the other series of the batch. Logits of padded positions mean nothing.
        """
        embeddings = embeddings.to(self.slice_head.weight.dtype)
        mask = mask.bool().cpu()
        seen, *found = self._place_slices(mask)
        device = embeddings.device
        nearest, places = (array.to(device, non_blocking=True) for array in found)
        projected = self.projection(self.input_norm(embeddings))
        projected = self.projection_norm(nn.functional.gelu(projected))
        inputs = torch.cat([projected, places[..., None].to(projected.dtype)], dim=-1)
        hidden = run_packed(self.sequence, inputs, seen)  # (B, T, 2H)
        logits = self.slice_head(hidden)
        slices = logits.gather(1, nearest[..., None].expand_as(logits))
        return slices, self.sequence_pool(hidden, seen.to(device, non_blocking=True))

    def _place_slices(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The slices that are seen, the nearest seen one to each, its place from 0 to 1: (B, T).

        The mask and all of these are on the CPU.
        """
        seen, nearest = np.zeros(mask.shape, bool), np.zeros(mask.shape, np.int64)
        places = np.zeros(mask.shape, np.float32)
        for row, real in enumerate(mask.numpy()):
            slices = np.flatnonzero(real)
            chosen = choose_slices(len(slices), self.config.longest_series)
            seen[row, slices[chosen]] = True
            nearest[row, slices] = slices[chosen[find_nearest(len(slices), chosen)]]
            places[row, slices] = np.arange(len(slices)) / max(1, len(slices) - 1)
        return torch.from_numpy(seen), torch.from_numpy(nearest), torch.from_numpy(places)


class AttentionPool(nn.Module):
    """For each label the mean of a series' features under an attention, times the label's weights.

    softmax over slices of attention(h), (T, 6); Σ_t of it times h_t, (6, D).
    """

    def __init__(self, size: int):
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(size, _ATTENTION), nn.Tanh(), nn.Linear(_ATTENTION, len(LABELS))
        )
        self.classifier_weight = nn.Parameter(torch.randn(len(LABELS), size) / size**0.5)
        self.classifier_bias = nn.Parameter(torch.zeros(len(LABELS)))

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features (B, T, D), mask (B, T) of the slices that count → logits (B, 6)."""
        scores = self.attention(features).masked_fill(~mask[..., None], -torch.inf)
        pooled = scores.float().softmax(dim=1).to(features.dtype).transpose(1, 2) @ features
        return (pooled * self.classifier_weight).sum(dim=2) + self.classifier_bias


def choose_slices(slices: int, longest: int) -> np.ndarray:
    """The slices of a series that are seen: all, or `longest`, evenly spread from end to end."""
    if slices <= longest:
        return np.arange(slices)
    return np.round(np.linspace(0, slices - 1, longest)).astype(np.int64)  # half to even


def find_nearest(slices: int, chosen: np.ndarray) -> np.ndarray:
    """For each of a series' slices the entry of `chosen` nearest to it, (slices,); a tie: lower."""
    above = np.searchsorted(chosen, np.arange(slices)).clip(max=len(chosen) - 1)
    below = (above - 1).clip(min=0)
    nearer = np.arange(slices) - chosen[below] <= chosen[above] - np.arange(slices)
    return np.where(nearer, below, above)
