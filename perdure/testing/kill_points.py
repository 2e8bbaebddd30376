"""A process that kills itself at a named step, as a machine that loses its power there.

`PERDURE_KILL_POINT=relay.published` kills at the first time that the step is reached, `relay.published:3` at the third.
"""

from __future__ import annotations

import os
import signal

from perdure.engine import steps
from perdure.errors import ConfigurationError

__all__ = ["VARIABLE", "install_from_environment"]

VARIABLE = "PERDURE_KILL_POINT"


def install_from_environment() -> None:
    """Install the kill that the environment asks for; nothing when it asks for none."""
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return
    step, _, times = wanted.partition(":")
    if not (times or "1").isdecimal():
        raise ConfigurationError(f"{VARIABLE}={wanted} is not STEP or STEP:TIMES")
    left = int(times or "1")

    def hook(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    steps.install(hook)
