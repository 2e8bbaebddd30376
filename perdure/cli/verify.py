"""perdure verify"""

from __future__ import annotations

from typing import Final

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, emit, plain
from perdure.cli.render import pretty
from perdure.client.verify import VerifyReport

__all__ = ["verify"]

_INTEGRITY: Final = 5


async def verify(*, options: Options = DEFAULTS) -> int:
    """Check every chain and seal, and that log, topic and cache agree event by event. Exit code 5 when something does not hold.

    A relay or projector that is merely behind is no fault: `current` is false then, and `lag` says by how much."""
    async with session(options) as engine:
        with Progress("verifying", quiet=options.json) as progress:
            report = await engine.verify(progress)
    facts = plain(report)
    emit(facts, as_json=options.json, text=f"{_verdict(report)}\n{pretty(facts)}")
    return 0 if report.ok else _INTEGRITY


def _verdict(report: VerifyReport) -> str:
    words = "everything holds" if report.ok else "SOMETHING DOES NOT HOLD"
    lag = report.lag
    if lag.relay_events:
        words += f"; the topic is {lag.relay_events} events behind"
    if lag.cache_agents:
        words += f"; {lag.cache_agents} cached states are {lag.cache_events} events behind"
    return words
