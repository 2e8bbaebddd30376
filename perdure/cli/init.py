"""perdure init"""

from __future__ import annotations

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit
from perdure.config import masked

__all__ = ["init"]


async def init(*, options: Options = DEFAULTS) -> None:
    """Create what is missing: the log's tables, the root key, the topic. What exists stays as it is."""
    settings = options.settings()
    async with session(options, create=True) as engine:
        # Opening with the right to do so has applied the migrations.
        await engine.keys.ensure_root_key()
        await engine.bus.ensure(engine.log.store.partitions)
        facts = {name: masked(str(getattr(settings, name).value)) for name in ("log", "bus", "cache", "keys")}
    emit({"ready": True, **facts}, as_json=options.json, text="\n".join(["ready", *(f"{name:<6} {url}" for name, url in facts.items())]))
