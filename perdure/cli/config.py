"""perdure config show"""

from __future__ import annotations

from typing import Any, Final

from cyclopts import App

from perdure.cli.options import DEFAULTS, Options
from perdure.cli.output import emit, table
from perdure.config import masked

__all__ = ["app"]

app = App(name="config", help="The effective settings, and where each comes from.")
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


def _tenant_source(options: Options) -> str:
    if options.tenant:
        return "flag"
    return "default" if options.tenant_name == DEFAULTS.tenant_name == "default" else "environment"
