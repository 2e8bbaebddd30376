"""perdure train"""

from __future__ import annotations

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, plain
from perdure.cli.render import excerpt

__all__ = ["train"]


async def train(*, options: Options = DEFAULTS) -> None:
    """Learn a compression dictionary from the tenant's own events; later events are written with it."""
    async with session(options) as engine:
        trained = await engine.train(options.tenant_name)
    emit(
        {"tenant": options.tenant_name, "trained": plain(trained)}, as_json=options.json, text=f"{options.tenant_name}: {excerpt(trained)}"
    )
