"""The initial weights of a backbone from a file, for as many channels as the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from kit import InputError
from kit.competition import LABELS
from kit.progress import log
from kit.training.checkpoints import check_file

# What reading a broken or malicious file raises, in safetensors, timm and torch.
_MISREAD = (
    OSError, SafetensorError, RuntimeError, ValueError, EOFError, LookupError, AttributeError,
    TypeError,
)  # fmt: skip


def load_backbone(model: nn.Module, path: Path) -> bool:
    """Load a state dict of the backbone, with or without a prefix; its head is left out.

    Returns whether that is one of six labels, so that the weights were trained on such images.
    The file is `.safetensors`, or `.pth`/`.pt`/`.bin` read with `weights_only=True`, so that
    nothing in it is executed. A first convolution of three channels is adapted to a model of other
    ones as timm does it. Raises `InputError` naming the file and the first weights that do not fit,
    and `OSError` if there is no such file.
    """
    import timm

    check_file(path)
    try:
        weights = timm.models.load_state_dict(str(path), weights_only=True)
    except _MISREAD as error:
        raise InputError(f"{path}: not a state dict that can be read safely") from error
    for prefix in ("module.", "backbone.", "model."):
        if any(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    _adapt_first_convolution(model, weights, path)
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in weights and not name.endswith("num_batches_tracked"):
            raise InputError(f"{path}: holds no weights {name!r} for {type(model).__name__}")
        shape = tuple(getattr(weights.get(name, value), "shape", ()))
        if shape != tuple(value.shape):
            raise InputError(f"{path}: {name} is {shape}, not {tuple(value.shape)}")
    model.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)
    heads = [getattr(weights[name], "shape", ()) for name in weights if name not in wanted]
    return any(tuple(shape)[:1] == (len(LABELS),) for shape in heads)


def _adapt_first_convolution(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Adapt weights of a first convolution of three channels to the channels of the model's.

    timm repeats them along the channels and scales them, so that equal images in all neighbours
    give what a single one gave; for one channel it sums them. Nothing else is changed: any other
    difference in shape is left for the caller to refuse.
    """
    from timm.models import adapt_input_conv

    names = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    layers = dict(model.named_modules())
    for name in (names,) if isinstance(names, str) else names:
        layer, value = layers.get(name), weights.get(f"{name}.weight")
        if not (isinstance(layer, nn.Conv2d) and isinstance(value, Tensor)):
            continue
        outputs, channels, *sides = layer.weight.shape
        if channels == 3 or tuple(value.shape) != (outputs, 3, *sides):
            continue
        weights[f"{name}.weight"] = adapt_input_conv(channels, value)
        how = "summed" if channels == 1 else f"repeated and scaled by 3/{channels}"
        log.info(f"{path}: {name} has weights for 3 channels, {how} for the model's {channels}")
