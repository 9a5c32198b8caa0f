"""Grad-CAM: where in a slice the classifier finds a label (Selvaraju et al., 2017)."""

from __future__ import annotations

import numpy as np
import torch

from kit.classifier import Classifier
from kit.competition import LABELS


def compute_gradcam(model: Classifier, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (B, S, S, 3) → maps (B, 6, h, w), zero or above, and logits (B, 6).

    A label's map is relu(Σ_c w_c A_c) over the channels of the classifier's last feature map A,
    with w_c the mean over the places of the logit's gradient by A_c (arXiv:1610.02391). Only the
    head is differentiated. Maps of one label can be compared between slices.
    """
    channels_first = images.permute(0, 3, 1, 2)
    with torch.no_grad():
        features = model.backbone.forward_features((channels_first - model.mean) / model.std)
    features = features.requires_grad_()  # (B, C, h, w)
    logits = model.head(model.backbone.forward_head(features, pre_logits=True))
    maps = []
    for label in range(len(LABELS)):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), features, retain_graph=True)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((weights * features).sum(dim=1).relu())
    return (
        torch.stack(maps, dim=1).detach().cpu().numpy(),
        logits.detach().cpu().numpy(),
    )
