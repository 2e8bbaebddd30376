"""Named steps of the engine's work: places where a fault test wants to stop, kill or look.

`reach` costs one comparison when nothing is installed. Nothing in the product depends on a hook.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["install", "reach"]

_hook: Callable[[str], None] | None = None


def install(hook: Callable[[str], None] | None) -> None:
    """Call `hook(name)` at every step from now on; None: no more."""
    global _hook
    _hook = hook


def reach(name: str) -> None:
    """Tell that a step has been reached."""
    if _hook is not None:
        _hook(name)
