"""perdure verify"""

from __future__ import annotations

import secrets
from typing import Annotated, Final

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, emit, plain
from perdure.cli.verified import looked_at, told, verdict
from perdure.client.verify_order import VerifyOrder, load_checkpoint, parse_sample
from perdure.engine.log.contract import LogStore
from perdure.errors import IntegrityError, KeyUnavailable, NotFound

__all__ = ["verify"]

_INTEGRITY: Final = IntegrityError.exit_code
_KEYS_MISSING: Final = KeyUnavailable.exit_code


async def verify(
    *,
    sample: Annotated[str, Parameter(help="Only this part of all agents and partitions, e.g. 5% or 0.05.")] = "100%",
    seed: Annotated[
        int | None, Parameter(help="Which part: the same seed chooses the same agents. Told in the report; else a new one.")
    ] = None,
    rate: Annotated[float, Parameter(help="Events that are read per second at most; 0: as fast as it goes.")] = 0.0,
    resume: Annotated[bool, Parameter(help="Go on where the last verification stood, if it did not end.", negative=())] = False,
    last: Annotated[bool, Parameter(help="Look at nothing: tell what was looked at last, and when.", negative=())] = False,
    options: Options = DEFAULTS,
) -> int:
    """Check every chain and seal, and that log, topic, cache and snapshots agree event by event. Exit code 5 when something does not hold, 7
    when all that could be read holds and keys are missing.

    A relay or projector that is merely behind is no fault: `current` is false then, and `lag` says by how much."""
    part = parse_sample(sample)
    order = VerifyOrder(part, _seed(part, seed), rate, keep=True, resume=resume).checked()
    async with session(options) as engine:
        if last:
            return await _tell_last(engine.log.store, options)
        with Progress("verifying", quiet=options.json) as progress:
            report = await engine.verify(progress, order)
    emit(plain(report), as_json=options.json, text=told(report))
    return _exit_code(report.ok, report.damaged)


def _exit_code(ok: bool, damaged: bool) -> int:
    return 0 if ok else _INTEGRITY if damaged else _KEYS_MISSING


def _seed(part: float, seed: int | None) -> int:
    if seed is not None:
        return seed
    return secrets.randbits(32) if part < 1 else 0


async def _tell_last(store: LogStore, options: Options) -> int:
    point = await load_checkpoint(store)
    if point is None:
        raise NotFound("nothing was verified yet", hint="perdure verify")
    looked = point.looked(store.partitions, (point.log or {}).get("agents", 0))
    facts = {"ok": point.ok if point.ended_us else None, "over": bool(point.ended_us), "looked": plain(looked)}
    words = verdict(point.ok, point.damaged) if point.ended_us else "it was interrupted: --resume goes on"
    emit(facts, as_json=options.json, text=f"{words}\n{looked_at(looked)}")
    return _exit_code(point.ok, point.damaged) if point.ended_us else 0
