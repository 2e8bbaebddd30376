"""Points in time on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from perdure.errors import InvalidInput

__all__ = ["parse_seconds", "parse_time"]

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_seconds(text: str) -> float:
    """How long: 90s, 15m, 2h, 3d. Raises InvalidInput."""
    if text[-1:] in _UNITS and text[:-1].isascii() and text[:-1].isdigit():
        return timedelta(**{_UNITS[text[-1]]: int(text[:-1])}).total_seconds()
    raise InvalidInput(f"{text!r} is no length of time", hint="write 90s, 15m, 2h or 3d")


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """RFC 3339 or a date (UTC where it names no zone), or how long ago: 90s, 15m, 2h, 3d. Raises InvalidInput."""
    if text[-1:] in _UNITS and text[:-1].isascii() and text[:-1].isdigit():
        return (now or datetime.now(UTC)) - timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a time", hint="write 2026-01-31T12:00:00Z, 2026-01-31, or how long ago: 15m") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
