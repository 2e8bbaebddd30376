"""A command in a process that kills itself at a named step: `python -m tests.faults.host_process host --node a …`, `… recover watch …`."""

from __future__ import annotations

import sys

from perdure.cli.entry import run
from perdure.testing.kill_points import install_from_environment

if __name__ == "__main__":
    install_from_environment()
    sys.exit(run(sys.argv[1:]))
