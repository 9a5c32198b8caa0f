"""The synthetic competition."""

from kit.phantom.write import write_phantom

__all__ = ["write_phantom"]
