"""perdure agents"""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import emit, table
from perdure.cli.render import excerpt
from perdure.errors import InvalidInput

__all__ = ["agents"]


async def agents(
    *,
    type: str | None = None,
    label: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    status: Literal["empty", "active", "fenced", "erased", "moved"] | None = None,
    after: str = "",
    limit: int = 100,
    tenants: Annotated[bool, Parameter(negative=())] = False,
    options: Options = DEFAULTS,
) -> None:
    """The agents of a tenant, in order of their ids.

    Parameters
    ----------
    type
        Only agents of this type.
    label
        NAME=VALUE: only agents with this label; may be repeated.
    status
        Only agents of this status.
    after
        Begin after this id: the last of the page before.
    limit
        Length of the page.
    tenants
        List the tenants instead.
    """
    async with session(options) as engine:
        if tenants:
            names = await engine.tenants()
            emit({"tenants": names}, as_json=options.json, text="\n".join(names))
            return
        listed = await engine.directory.list(options.tenant_name, type=type, labels=_labels(label), status=status, after=after, limit=limit)
    cells = ((entry.agent, entry.version, entry.status, entry.type, excerpt(entry.labels)) for entry in listed)
    text = table(("AGENT", "VERSION", "STATUS", "TYPE", "LABELS"), cells) if listed else "no agents"
    facts = {"tenant": options.tenant_name, "agents": listed, "next_after": listed[-1].agent if len(listed) == limit else None}
    emit(facts, as_json=options.json, text=text)


def _labels(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise InvalidInput(f"--label {wrong[0]!r} is not NAME=VALUE")
    return {name: value for name, _, value in pairs}
