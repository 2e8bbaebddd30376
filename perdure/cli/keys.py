"""perdure keys list | rotate"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from perdure.cli.options import DEFAULTS, Options, session
from perdure.cli.output import Progress, amount, emit, plain, table
from perdure.errors import InvalidInput, KeyUnavailable

if TYPE_CHECKING:
    from perdure.client.engine import Engine
    from perdure.client.keys import Rotation

__all__ = ["app"]

app = App(name="keys", help="Tenants' keys: list, rotate.")
_FLAG: Final = Parameter(negative=())


@app.command(name="list")
async def list_(*, options: Options = DEFAULTS) -> None:
    """The tenants' keys, and the root keys that wrap them. Each is tried; of --tenant only, where it is given."""
    async with session(options) as engine:
        facts = await engine.keys.list(options.tenant)
        root = _root_key_id(engine)
    rows = [(one.tenant, one.version or "-", ", ".join(dict.fromkeys(one.root_keys.values())) or "-", one.state) for one in facts]
    text = f"root key: {root or 'not there'}\n" + (
        table(("TENANT", "VERSION", "WRAPPED BY", "STATE"), rows) if rows else "no tenant has a key"
    )
    emit({"root_key": root, "keys": [plain(one) for one in facts]}, as_json=options.json, text=text)


def _root_key_id(engine: Engine) -> str | None:
    """None where the tenants' keys need one that is not there; each of them says so."""
    try:
        return engine.keys.root_key_id
    except KeyUnavailable:
        return None


@app.command
async def rotate(
    *,
    all: Annotated[bool, _FLAG] = False,
    root: Annotated[bool, _FLAG] = False,
    moved_from: str | None = None,
    only_rewrap: Annotated[bool, _FLAG] = False,
    options: Options = DEFAULTS,
) -> int:
    """Give a tenant a new key version, and wrap its agents' keys under it; or, with --root, all tenants' keys under a new root key.

    Nothing that is stored is rewritten: what is new is sealed under the new version, what is old stays readable. Exit code 7 when some keys
    could not be had; all others are done.

    Parameters
    ----------
    all
        Every tenant, not only --tenant.
    root
        The root key.
    moved_from
        With --root: URL of the keys that wrapped so far, to move to those of --keys.
    only_rewrap
        Make no new version; wrap what is still under an older one, after a rotation that was broken off.
    """
    if moved_from is not None and not root:
        raise InvalidInput("--moved-from goes with --root")
    if root and (all or only_rewrap):
        raise InvalidInput("--root goes with neither --all nor --only-rewrap", hint="it is about every tenant")
    async with session(options) as engine:
        with Progress("wrapping", quiet=options.json, unit="keys") as progress:
            if root:
                return await _rotate_root(engine, moved_from, progress, options)
            tenants = [facts.tenant for facts in await engine.keys.list()] if all else [options.tenant_name]
            return await _rotate_tenants(engine, tenants, only_rewrap, progress, options)


async def _rotate_tenants(engine: Engine, tenants: list[str], only_rewrap: bool, progress: Progress, options: Options) -> int:
    done: list[Rotation] = []
    failed: dict[str, str] = {}
    rotate_one = engine.keys.rewrap if only_rewrap else engine.keys.rotate_encryption_key
    for tenant in tenants:
        try:
            done.append(await rotate_one(tenant, progress=lambda wrapped, _: progress(wrapped)))
        except KeyUnavailable as problem:
            if len(tenants) == 1:
                raise
            failed[tenant] = problem.message
    lines = [_wrapped(one) for one in done]
    lines += [f"tenant {one.tenant}: the key of {agent} could not be: {why}" for one in done for agent, why in one.left.items()]
    lines += [f"tenant {tenant}: {why}" for tenant, why in failed.items()]
    facts: dict[str, Any] = {"rotated": [plain(one) for one in done], "failed": failed}
    emit(facts, as_json=options.json, text="\n".join(lines) or "no tenant has a key")
    return KeyUnavailable.exit_code if failed or any(one.left for one in done) else 0


def _wrapped(one: Rotation) -> str:
    return f"tenant {one.tenant}: version {one.previous} -> {one.version}, the keys of {amount(one.rewrapped, 'agent')} wrapped anew"


async def _rotate_root(engine: Engine, moved_from: str | None, progress: Progress, options: Options) -> int:
    from perdure.security.keys import open_provider

    previous = open_provider(moved_from) if moved_from is not None else None
    done = await engine.keys.rotate_root_key(previous=previous, progress=lambda wrapped, _: progress(wrapped))
    lines = [f"root key {done.key_id} wraps the keys of {amount(len(done.tenants), 'tenant')}"]
    lines += [f"tenant {tenant}: {why}" for tenant, why in done.left.items()]
    emit(done, as_json=options.json, text="\n".join(lines))
    return KeyUnavailable.exit_code if done.left else 0
