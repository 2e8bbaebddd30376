"""perdure train"""

from __future__ import annotations

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import amount, emit, plain

__all__ = ["train"]


async def train(*, options: Options = DEFAULTS) -> None:
    """Learn a compression dictionary from the tenant's own events; later events are written with it."""
    async with session(options) as engine:
        trained = await engine.train(options.tenant_name)
    facts = {"tenant": options.tenant_name, **plain(trained)}
    emit(facts, as_json=options.json, text=f"dictionary {trained.dictionary}, learned from {amount(trained.samples, 'event')}")
