"""perdure scrub"""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, count, emit, plain, size

__all__ = ["scrub"]

_INTEGRITY: Final = 5


async def scrub(
    *, fraction: float = 0.1, rebuild: Annotated[bool, Parameter(negative="--no-rebuild")] = True, options: Options = DEFAULTS
) -> int:
    """Read a part of all snapshots as a whole, those first that were not read for longest. Exit code 5 when damage was found.

    Run every day with 0.1, every snapshot is read within ten days. What is damaged is not used again, and is made anew from what is left.

    Parameters
    ----------
    fraction
        Which part, above 0 and at most 1.
    rebuild
        Make damaged ones anew.
    """
    async with session(options) as engine:
        with Progress("scrubbing", quiet=options.json, unit="snapshots") as progress:
            done = await engine.upkeep.scrub(fraction, rebuild=rebuild, progress=progress)
    lines = [
        f"{count(done.read)} of {amount(done.snapshots, 'snapshot')} read ({size(done.bytes_read)}): {'all are whole' if done.ok else 'DAMAGE'}"
    ]
    for each in done.damaged:
        snapshot = each.snapshot
        lines.append(f"  {snapshot.tenant}/{snapshot.agent} version {snapshot.version}: {each.problem}; {each.outcome}")
    lines += [f"  not read: {each}" for each in done.unreadable]
    emit(plain(done), as_json=options.json, text="\n".join(lines))
    return 0 if done.ok else _INTEGRITY
