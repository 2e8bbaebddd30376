"""perdure config show"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from cyclopts import App

from perdure.cli.options import DEFAULTS, Options
from perdure.cli.output import emit, table

__all__ = ["app", "masked"]

app = App(name="config", help="The settings in force, and where each comes from.")
MASK: Final = "***"
_SETTINGS: Final = ("log", "bus", "cache", "store", "keys", "training")


@app.command
def show(*, options: Options = DEFAULTS) -> None:
    """Value and source of each setting; passwords are masked."""
    settings = options.settings()
    rows: dict[str, Any] = {}
    for name in _SETTINGS:
        setting = getattr(settings, name)
        rows[name] = {"value": masked(str(setting.value)) if setting.value is not None else None, "source": str(setting.source)}
    rows["tenant"] = {"value": options.tenant_name, "source": _tenant_source(options)}
    lines = ((name, "-" if row["value"] is None else row["value"], row["source"]) for name, row in rows.items())
    emit(rows, as_json=options.json, text=table(("SETTING", "VALUE", "SOURCE"), lines))


def masked(url: str) -> str:
    """The URL without what is secret in it: the password, and every value of its query that is named like one."""
    parts = urlsplit(url)
    place = parts.netloc
    if "@" in place:
        who, _, where = place.rpartition("@")
        name, colon, _ = who.partition(":")
        place = f"{name}{colon}{MASK if colon else ''}@{where}"
    pairs = [pair.partition("=") for pair in parts.query.split("&")] if parts.query else []
    secret = ("password", "secret", "token", "key")
    query = "&".join(f"{name}{sign}{MASK if any(word in name.lower() for word in secret) else value}" for name, sign, value in pairs)
    return url if (place, query) == (parts.netloc, parts.query) else urlunsplit(parts._replace(netloc=place, query=query))


def _tenant_source(options: Options) -> str:
    if options.tenant:
        return "flag"
    return "default" if options.tenant_name == DEFAULTS.tenant_name == "default" else "environment"
