"""perdure completion"""

from __future__ import annotations

from typing import Literal

from perdure.cli.options import DEFAULTS, Options
from perdure.cli.output import emit

__all__ = ["completion"]


def completion(shell: Literal["bash", "zsh", "fish"], /, *, options: Options = DEFAULTS) -> None:
    """Print the completion script, e.g. for `source <(perdure completion bash)`."""
    from perdure.cli.entry import build

    script = build().generate_completion(prog_name="perdure", shell=shell)
    emit({"shell": shell, "script": script}, as_json=options.json, text=script)
