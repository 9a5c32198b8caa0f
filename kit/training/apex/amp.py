"""apex's `initialize` and `scale_loss` by their usual import; they live in `kit.training.amp`."""

from kit.training.amp import initialize, scale_loss

__all__ = ["initialize", "scale_loss"]
