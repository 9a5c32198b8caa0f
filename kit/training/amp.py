"""The mixed precision of apex on top of `torch.amp`: opt levels, `initialize`, `scale_loss`.

    model, optimizer = initialize(model, optimizer, "O1")
    with scale_loss(loss, optimizer) as scaled:
        scaled.backward()
    optimizer.step()        # does nothing, and the scale is halved, where a gradient overflowed

Half precision is float16 on CUDA and bfloat16 on the CPU, unless `dtype` names another type. No
call waits for the device, so that a GPU never stands still for the host.
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
    device = next(model.parameters()).device
    dtype = dtype or choose_half(device)
    masters: _Pairs = []
    if opt_level == "O1":
        _autocast_forward(model, device.type, dtype)
    elif opt_level in ("O2", "O3"):
        masters = _halve(model, optimizer, dtype, keep_normalization=opt_level == "O2")
    if optimizer is not None:
        scaled = opt_level in ("O1", "O2")
        vars(optimizer)["amp"] = LossScaling(optimizer, device, scaled, masters)
    return model, optimizer


def choose_half(device: torch.device, precision: str = "float16") -> torch.dtype:
    """The half-precision type on a device: bfloat16 on a CPU, on a GPU the one that is named.

    Raises `InputError` for a GPU that has no bfloat16, such as a T4.
    """
    if device.type != "cuda":
        return torch.bfloat16
    if precision == "bfloat16" and torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise InputError(f"precision bfloat16: the {name} has none; choose float16")
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


def autocast(device: torch.device, opt_level: str) -> torch.autocast:
    """Autocast for inference, at every opt level except O0."""
    return torch.autocast(device.type, dtype=choose_half(device), enabled=opt_level != "O0")


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
def scale_loss(
    loss: torch.Tensor, optimizer: torch.optim.Optimizer, delay_unscale: bool = False
) -> Iterator[torch.Tensor]:
    """Yield the scaled loss to call `backward` on; unscale the gradients on the way out.

    With `delay_unscale` they stay scaled, and further backward passes add to them, until the last
    pass or `unscale_gradients` of the optimizer's scaling.
    """
    scaling = find_scaling(optimizer)
    yield scaling.scale_loss(loss)
    scaling.collect_gradients()
    if not delay_unscale:
        scaling.unscale_gradients()


def find_scaling(optimizer: torch.optim.Optimizer) -> LossScaling:
    """The loss scaling that `initialize` gave an optimizer; it is also `optimizer.amp`."""
    return vars(optimizer)["amp"]


def state_dict(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What resuming needs beside the optimizer's own state: scale, growth, skipped steps."""
    scaling = find_scaling(optimizer)
    return {**scaling.scaler.state_dict(), "skipped": int(scaling.skipped)}


def load_state_dict(optimizer: torch.optim.Optimizer, state: dict[str, float]) -> None:
    """Restore what `state_dict` returned."""
    scaling, state = find_scaling(optimizer), dict(state)
    scaling.skipped = torch.full_like(scaling.skipped, state.pop("skipped"))
    if state:
        scaling.scaler.load_state_dict(state)


def list_masters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The model's state dict, with the masters in place of its half-precision parameters."""
    masters = dict(find_scaling(optimizer).masters)
    weights = model.state_dict(keep_vars=True)
    return {name: masters.get(value, value).detach() for name, value in weights.items()}


class LossScaling:
    """Loss scale and master weights of one optimizer.

    It acts in hooks before and after `optimizer.step`, which stays the optimizer's own. `masters`
    pairs each half-precision parameter of the model with its float32 master, on which the optimizer
    works; it is empty where the optimizer works on the model's own parameters. `skipped` counts the
    steps that an overflow made void, `skipped_in_a_row` those since the last good one; both are
    counted on the device.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, device: torch.device, enabled: bool, masters: _Pairs
    ):
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=INITIAL_SCALE, growth_interval=GROWTH_INTERVAL, enabled=enabled
        )
        self.optimizer, self.enabled, self.masters = optimizer, enabled, masters
        self.skipped = self.skipped_in_a_row = torch.zeros((), device=device)
        self.scaler.scale(self.skipped)  # else a process whose first batch is None has no scale
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    @property
    def scale(self) -> float:
        """The present loss scale; 1 where losses are not scaled."""
        return self.scaler.get_scale()

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Multiply the loss by the scale; all gradients of one that is not finite become NaN.

        Without that they may be finite, as those of an infinite logit are.
        """
        loss = loss.float()
        return self.scaler.scale(loss * (1 + 0 * loss.detach()) if self.enabled else loss)

    def collect_gradients(self) -> None:
        """Add the gradients of the half-precision parameters to those of their masters."""
        for parameter, master in self.masters:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    def unscale_gradients(self) -> None:
        """Divide the gradients by the scale and note whether one overflowed."""
        if self.enabled:
            self.scaler.unscale_(self.optimizer)

    def _before_step(self, *_) -> None:
        """Adapt the scale; have the step do nothing after an overflow."""
        if not self.enabled:
            return
        noted = self.scaler._found_inf_per_device(self.optimizer)
        self.scaler.update()
        (overflowed,) = noted.values()
        self.skipped = self.skipped + overflowed
        self.skipped_in_a_row = (self.skipped_in_a_row + overflowed) * overflowed
        if self.optimizer.defaults.get("fused"):
            vars(self.optimizer)["found_inf"] = overflowed  # read by the step, on the device
        elif overflowed:
            self.optimizer.zero_grad(set_to_none=True)

    def _after_step(self, *_) -> None:
        """Copy the master weights into the model."""
        vars(self.optimizer).pop("found_inf", None)
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
