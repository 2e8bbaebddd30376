"""The options that every command has, and the engine that they lead to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Group, Parameter

from perdure.errors import InvalidInput

if TYPE_CHECKING:
    from perdure.client.engine import Engine
    from perdure.config import Settings

__all__ = ["DEFAULTS", "TENANT_DEFAULT", "Options", "session"]

TENANT_DEFAULT: Final = "default"
_COMMON: Final = Group("Options of every command", sort_key=100)


def _flag(text: str) -> Parameter:
    return Parameter(help=text, group=_COMMON, show_default=False, negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command takes."""

    log: Annotated[str | None, _flag("URL of the log: sqlite:///FOLDER or postgresql://… [PERDURE_LOG]")] = None
    bus: Annotated[str | None, _flag("URL of the bus: memory:// or kafka://HOST:PORT [PERDURE_BUS]")] = None
    cache: Annotated[str | None, _flag("URL of the cache: memory:// or redis://HOST:PORT/N [PERDURE_CACHE]")] = None
    store: Annotated[str | None, _flag("URL of the snapshots: file:///FOLDER or s3://BUCKET/PREFIX [PERDURE_STORE]")] = None
    keys: Annotated[str | None, _flag("URL of the root key: file:///PATH, env: or vault://HOST:PORT/KEY [PERDURE_KEYS]")] = None
    tenant: Annotated[str | None, _flag("Tenant [PERDURE_TENANT; default: default]")] = None
    config: Annotated[Path | None, _flag("Settings file [default: perdure.toml, where there is one]")] = None
    json: Annotated[bool, _flag("Print JSON on stdout, errors as JSON on stderr")] = False

    def settings(self) -> Settings:
        """The settings in force: flag, else environment, else file, else default."""
        from perdure import config

        flags = {"log": self.log, "bus": self.bus, "cache": self.cache, "store": self.store, "keys": self.keys}
        flags["config"] = None if self.config is None else str(self.config)
        return config.load({name: value for name, value in flags.items() if value is not None})

    @property
    def tenant_given(self) -> str | None:
        """The tenant that somebody has named. Raises InvalidInput for an empty name: a variable of the shell that is not set names no tenant."""
        if self.tenant == "":
            raise InvalidInput("--tenant is empty", hint="name a tenant, or leave the flag out")
        return self.tenant or os.environ.get("PERDURE_TENANT") or None

    @property
    def tenant_name(self) -> str:
        """The tenant that the command works in."""
        return self.tenant_given or TENANT_DEFAULT


DEFAULTS: Final = Options()


@contextlib.asynccontextmanager
async def session(options: Options, *, create: bool = False) -> AsyncIterator[Engine]:
    """The engine of these options, open for as long as the block runs. create: a log that is missing is made; else that is an error."""
    import perdure
    from perdure.cli.warnings import thin_out

    thin_out()
    async with perdure.open(settings=options.settings(), create=create) as engine:
        yield engine
