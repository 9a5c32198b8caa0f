"""The mixed precision of apex on top of `torch.amp`: opt levels, `initialize`, `scale_loss`.

    model, optimizer = initialize(model, optimizer, "O1")
    with scale_loss(loss, optimizer) as scaled:
        scaled.backward()
    optimizer.step()        # does nothing, and the scale is halved, where a gradient overflowed

Half precision is float16 on CUDA and bfloat16 on the CPU, unless `dtype` names another type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kit import InputError

OPT_LEVELS = ("O0", "O1", "O2", "O3")

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps without overflow before the scale doubles, as in apex

_Pairs = list[tuple[torch.Tensor, torch.Tensor]]

_NORMALIZATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def initialize(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    opt_level: str = "O1",
    dtype: torch.dtype | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """Set a model, already on its device, and its optimizer to an opt level of apex.

    O0 is float32. O1 is autocast. O2 has half-precision weights and float32 normalization layers,
    and the optimizer works on float32 master weights. O3 is half precision throughout. O1 and O2
    scale the loss dynamically. The model's outputs are float32 at every level. `dtype` overrides
    the half-precision type. Without an optimizer (inference) only the model changes. Both are
    changed in place and returned. Raises `InputError` for an unknown level.
    """
    if opt_level not in OPT_LEVELS:
        raise InputError(f"opt_level {opt_level!r} is none of {', '.join(OPT_LEVELS)}")
    device = next(model.parameters()).device.type
    dtype = dtype or (torch.float16 if device == "cuda" else torch.bfloat16)
    masters: _Pairs = []
    if opt_level == "O1":
        _autocast_forward(model, device, dtype)
    elif opt_level in ("O2", "O3"):
        masters = _halve(model, optimizer, dtype, keep_normalization=opt_level == "O2")
    if optimizer is not None:
        scaled = opt_level in ("O1", "O2")
        vars(optimizer)["amp"] = LossScaling(optimizer, device, scaled, masters)
    return model, optimizer


def autocast(device: torch.device, opt_level: str) -> torch.autocast:
    """Autocast for inference, at every opt level except O0."""
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=opt_level != "O0")


def choose_convolution_level(device: torch.device, opt_level: str) -> str:
    """The opt level for inference with convolutions: `opt_level`, or O0 where float32 is faster.

    Float32 is faster on CPUs without bfloat16 products (AMX, AVX-512 BF16). Measured with
    ResNeXt-101 at 480 px, bfloat16 takes a third of the time of float32 with AMX, half of it with
    AVX-512 BF16 alone, and 1.4 times as long with neither.
    """
    if device.type != "cpu":
        return opt_level
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # torch 2.4 lacks it
    products = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return opt_level if products else "O0"


@contextmanager
def scale_loss(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the scaled loss to call `backward` on; unscale the gradients on the way out."""
    scaling = find_scaling(optimizer)
    yield scaling.scaler.scale(loss.float())
    scaling.unscale_gradients()


def find_scaling(optimizer: torch.optim.Optimizer) -> LossScaling:
    """The loss scaling that `initialize` gave an optimizer; it is also `optimizer.amp`."""
    return vars(optimizer)["amp"]


def state_dict(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What resuming needs beside the optimizer's own state: scale, growth, skipped steps."""
    scaling = find_scaling(optimizer)
    return {**scaling.scaler.state_dict(), "skipped": scaling.skipped}


def load_state_dict(optimizer: torch.optim.Optimizer, state: dict[str, float]) -> None:
    """Restore what `state_dict` returned."""
    scaling, state = find_scaling(optimizer), dict(state)
    scaling.skipped = int(state.pop("skipped"))
    if state:
        scaling.scaler.load_state_dict(state)


class LossScaling:
    """Loss scale and master weights of one optimizer.

    It acts in hooks before and after `optimizer.step`, which stays the optimizer's own. `masters`
    pairs each half-precision parameter of the model with its float32 master, on which the optimizer
    works; it is empty where the optimizer works on the model's own parameters. `skipped` counts the
    steps that an overflow made void, `skipped_in_a_row` those since the last good one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: str, enabled: bool, masters: _Pairs
    ):
        self.scaler = torch.amp.GradScaler(
            device, init_scale=INITIAL_SCALE, growth_interval=GROWTH_INTERVAL, enabled=enabled
        )
        self.optimizer, self.masters = optimizer, masters
        self.skipped = self.skipped_in_a_row = 0
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    @property
    def scale(self) -> float:
        """The present loss scale; 1 where losses are not scaled."""
        return self.scaler.get_scale()

    def unscale_gradients(self) -> None:
        """Divide the gradients by the scale and note whether one overflowed."""
        for parameter, master in self.masters:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)

    def _before_step(self, *_) -> None:
        """Adapt the scale; after an overflow drop the gradients, so that the step does nothing."""
        scale = self.scale
        self.scaler.update()
        if self.scale >= scale:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)

    def _after_step(self, *_) -> None:
        """Copy the master weights into the model."""
        with torch.no_grad():
            for parameter, master in self.masters:
                parameter.copy_(master)


def _autocast_forward(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Run the forward pass in autocast; the outputs are float32, for a loss outside autocast."""
    forward = model.forward

    def autocast_forward(*inputs, **options):
        with torch.autocast(device, dtype=dtype):
            outputs = forward(*inputs, **options)
        return _cast(outputs, torch.float32)

    model.forward = autocast_forward


def _halve(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    dtype: torch.dtype,
    keep_normalization: bool,
) -> _Pairs:
    """Cast the model, its inputs and outputs; return parameters with their masters (O2)."""
    masters: dict[torch.Tensor, torch.Tensor] = {}
    kept: set[int] = set()
    if keep_normalization:
        for module in model.modules():
            if isinstance(module, _NORMALIZATION):
                kept.update(id(tensor) for tensor in module.state_dict(keep_vars=True).values())
                _cast_around(module, torch.float32, dtype)
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in kept and tensor.is_floating_point():
            if keep_normalization and isinstance(tensor, nn.Parameter):
                masters[tensor] = tensor.detach().float().clone().requires_grad_()
            tensor.data = tensor.data.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # else cuDNN copies the weights at every call
    _cast_around(model, dtype, torch.float32)
    if optimizer is None or not keep_normalization:
        return []
    for group in optimizer.param_groups:
        group["params"] = [masters.get(parameter, parameter) for parameter in group["params"]]
    return list(masters.items())


def _cast_around(module: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
    """Cast floating-point inputs of the module to `inside` and its outputs to `outside`."""
    forward = module.forward

    def cast_forward(*inputs, **options):
        inputs = tuple(_cast(value, inside) for value in inputs)
        options = {name: _cast(value, inside) for name, value in options.items()}
        return _cast(forward(*inputs, **options), outside)

    module.forward = cast_forward


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    return value
