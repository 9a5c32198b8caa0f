"""apex's mixed precision, over `torch.amp`: opt levels, `initialize` and `scale_loss`.

    model, optimizer = initialize(model, optimizer, "O1")
    with scale_loss(loss, optimizer) as scaled:
        scaled.backward()
    optimizer.step()        # skipped, and the scale halved, where a gradient overflowed

Half precision is float16 on CUDA and bfloat16 on the CPU, unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import nn

OPT_LEVELS = ("O0", "O1", "O2", "O3")

INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps without overflow before the scale doubles, as in apex

_NORMALIZATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def initialize(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    opt_level: str = "O1",
    dtype: torch.dtype | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """Put a model, already on its device, and its optimizer into an opt level of apex.

    O0: float32. O1: autocast. O2: half-precision weights with float32 normalization layers, the
    optimizer working on float32 master weights. O3: all half. O1 and O2 scale the loss
    dynamically. `dtype` overrides the half-precision type. Without an optimizer (inference) only
    the model changes. Both are changed in place and returned.
    """
    if opt_level not in OPT_LEVELS:
        raise ValueError(f"opt_level {opt_level!r} is none of {', '.join(OPT_LEVELS)}")
    device = next(model.parameters()).device.type
    dtype = dtype or (torch.float16 if device == "cuda" else torch.bfloat16)
    masters = None
    if opt_level == "O1":
        _autocast_forward(model, device, dtype)
    elif opt_level in ("O2", "O3"):
        masters = _halve(model, optimizer, dtype, keep_normalization=opt_level == "O2")
    if optimizer is not None:
        scaling = opt_level in ("O1", "O2")
        optimizer.amp = MixedPrecision(optimizer, device, scaling, masters)
    return model, optimizer


def autocast(device: torch.device, opt_level: str) -> torch.autocast:
    """Half precision for inference: autocast at every opt level but O0."""
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=opt_level != "O0")


def choose_convolution_level(device: torch.device, opt_level: str) -> str:
    """The opt level for inference by convolutions: `opt_level`, or O0 where float32 is faster.

    That is on CPUs without bfloat16 products (AMX, AVX-512 BF16). Measured with ResNeXt-101 at
    480 px: bfloat16 takes a third of float32's time with AMX, half of it with AVX-512 BF16 alone,
    1.4 times it with neither.
    """
    if device.type != "cpu":
        return opt_level
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    products = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
    return opt_level if products else "O0"


@contextmanager
def scale_loss(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the scaled loss to call `backward` on; unscale the gradients on the way out."""
    yield optimizer.amp.scaler.scale(loss.float())
    optimizer.amp.unscale_gradients()


def state_dict(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What resuming needs beside the optimizer's own state: scale, growth, skipped steps."""
    return {**optimizer.amp.scaler.state_dict(), "skipped": optimizer.amp.skipped}


def load_state_dict(optimizer: torch.optim.Optimizer, state: dict[str, float]) -> None:
    """Restore what `state_dict` gave."""
    state = dict(state)
    optimizer.amp.skipped = int(state.pop("skipped"))
    if state:
        optimizer.amp.scaler.load_state_dict(state)


class MixedPrecision:
    """Loss scale and master weights of one optimizer, whose `step` it replaces.

    `masters` pairs each half-precision parameter of the model with its float32 master, on which
    the optimizer works; None where the optimizer works on the model's own parameters.
    """

    def __init__(self, optimizer, device: str, scaling: bool, masters=None):
        self.scaler = torch.amp.GradScaler(
            device, init_scale=INITIAL_SCALE, growth_interval=GROWTH_INTERVAL, enabled=scaling
        )
        self.optimizer, self.masters, self.skipped = optimizer, masters, 0
        self._plain_step = optimizer.step
        # A method of the optimizer itself, so that learning-rate schedulers can wrap it.
        optimizer.step = MethodType(_step, optimizer)

    @property
    def scale(self) -> float:
        """The present loss scale; 1 where losses are not scaled."""
        return self.scaler.get_scale()

    def unscale_gradients(self) -> None:
        """Divide the gradients by the scale and note whether one overflowed."""
        for parameter, master in self.masters or ():
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)

    def step(self) -> None:
        """Step unless a gradient overflowed; adapt the scale; renew the model's weights."""
        scale, step = self.scale, self.optimizer.step
        self.optimizer.step = self._plain_step
        try:
            self.scaler.step(self.optimizer)
        finally:
            self.optimizer.step = step
        self.scaler.update()
        self.skipped += self.scale < scale
        with torch.no_grad():
            for parameter, master in self.masters or ():
                parameter.copy_(master)


def _step(optimizer: torch.optim.Optimizer) -> None:
    optimizer.amp.step()


def _autocast_forward(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    forward = model.forward

    def autocast_forward(*inputs, **options):
        with torch.autocast(device, dtype=dtype):
            return forward(*inputs, **options)

    model.forward = autocast_forward


def _halve(model, optimizer, dtype, keep_normalization: bool):
    """Cast the model, inputs and outputs; with `keep_normalization` (O2) return master pairs."""
    masters = {}
    kept = set()
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
    _cast_around(model, dtype, torch.float32)
    if optimizer is None or not keep_normalization:
        return None
    for group in optimizer.param_groups:
        group["params"] = [masters.get(parameter, parameter) for parameter in group["params"]]
    return list(masters.items())


def _cast_around(module: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
    """Give the module its floating inputs as `inside` and return its outputs as `outside`."""
    forward = module.forward

    def cast_forward(*inputs, **options):
        inputs = [_cast(value, inside) for value in inputs]
        options = {name: _cast(value, inside) for name, value in options.items()}
        return _cast(forward(*inputs, **options), outside)

    module.forward = cast_forward


def _cast(value, dtype: torch.dtype):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    return value
