"""Grad-CAM: which regions of a slice raise a label's logit (Selvaraju et al., 2017)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kit.classifier import Classifier
from kit.competition import LABELS

_FINE = 6  # cells per side; a coarser map does not show where the evidence lies


def find_map_layer(model: Classifier) -> nn.Module | None:
    """The stage whose output Grad-CAM weighs: the deepest one of at least `_FINE` × `_FINE` cells.

    If no stage is that fine, the first one. None for a model whose stages do not output feature
    maps (B, C, h, w): those of ViT are tokens, those of Swin have channels last.
    """
    modules = dict(model.backbone.named_modules())  # some models list stages that they lack
    stages = [s for s in getattr(model.backbone, "feature_info", []) if s["module"] in modules]
    layers = [modules[stage["module"]] for stage in stages]
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note_shape(layer, _inputs, output):
        shapes[layer] = tuple(output.shape) if torch.is_tensor(output) else ()

    hooks = [layer.register_forward_hook(note_shape) for layer in layers]
    side, device = model.config.image_size, model.head.weight.device
    with torch.inference_mode():
        model(torch.zeros(1, side, side, model.config.channels, device=device))
    for hook in hooks:
        hook.remove()
    maps = [
        layer
        for layer, stage in zip(layers, stages, strict=True)
        if len(shapes.get(layer, ())) == 4 and shapes[layer][1] == stage["num_chs"]
    ]
    fine = [layer for layer in maps if min(shapes[layer][2:]) >= _FINE]
    return fine[-1] if fine else next(iter(maps), None)


def compute_gradcam(
    model: Classifier, layer: nn.Module, images: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, S, S, channels) → non-negative maps (B, 6, h, w) and logits (B, 6).

    A label's map is relu(Σ_c w_c A_c) over the channels of the feature map A that `layer` outputs,
    where w_c is the mean over the cells of the logit's gradient with respect to A_c
    (arXiv:1610.02391).
    """
    kept = []

    def keep(_layer, _inputs, output):
        kept.append(output.requires_grad_())
        torch.set_grad_enabled(True)  # only what follows `layer` is differentiated
        return output.clone()  # the next layer may work in place

    hook = layer.register_forward_hook(keep)
    with torch.no_grad():  # on exit, restores the mode that the hook changed
        logits = model(images.to(model.head.weight.device))
    hook.remove()
    (features,) = kept  # (B, C, h, w)
    maps = []
    for label in range(len(LABELS)):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), features, retain_graph=True)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((weights * features).sum(dim=1).relu())
    return (
        torch.stack(maps, dim=1).detach().cpu().numpy(),
        logits.detach().cpu().numpy(),
    )


def locate_labels(model: Classifier, layer: nn.Module, images: torch.Tensor) -> np.ndarray:
    """Images (B, S, S, channels) → Grad-CAM maps as a page takes them, uint8 (B, 6, h, w)."""
    return scale_maps(*compute_gradcam(model, layer, images))


def scale_maps(maps: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Maps (B, 6, h, w) and logits (B, 6) → uint8 (B, 6, h, w), scaled by the probabilities.

    The strongest cell of a slice's map gets the label's probability, with 255 for 1, so that a
    slice in which the classifier finds next to nothing shows next to nothing.
    """
    highest = np.maximum(maps.max(axis=(2, 3), keepdims=True), 1e-9)
    probabilities = torch.from_numpy(logits).double().sigmoid().numpy()
    return np.round(255 * maps / highest * probabilities[..., None, None]).astype(np.uint8)
