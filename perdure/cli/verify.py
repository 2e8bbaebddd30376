"""perdure verify"""

from __future__ import annotations

from typing import Final

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, emit, plain
from perdure.cli.render import pretty

__all__ = ["verify"]

_INTEGRITY: Final = 5


async def verify(*, options: Options = DEFAULTS) -> int:
    """Check every chain and seal, and that log, topic and cache agree event by event. Exit code 5 when something does not hold."""
    async with session(options) as engine:
        with Progress("verifying", quiet=options.json) as progress:
            report = await engine.verify(progress)
    facts = plain(report)
    emit(facts, as_json=options.json, text=f"{'everything holds' if report.ok else 'SOMETHING DOES NOT HOLD'}\n{pretty(facts)}")
    return 0 if report.ok else _INTEGRITY
