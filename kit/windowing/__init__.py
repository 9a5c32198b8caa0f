"""Hounsfield units → the image that a model sees: windows, crop to the head, geometry."""

from importlib import import_module
from typing import Any

from kit.windowing.config import MEAN, STD, WINDOWS, InputConfig

_LAZY = ("crop_to_head", "render_image", "resize_image", "window_image")

__all__ = ["MEAN", "STD", "WINDOWS", "InputConfig", *_LAZY]


def __getattr__(name: str) -> Any:
    """Import what computes when it is first used: a configuration needs none of it."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("kit.windowing.render"), name)
