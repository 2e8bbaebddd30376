"""Plots as SVG, of lines and of bars, with axes by decades. Text and nothing else: a page can be made wherever Python is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["bars", "lines"]

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 76, 210, 52, 52
COLOURS = ("#0b7a75", "#d1495b", "#edae49", "#5b5f97", "#66a182", "#a36a3f", "#8d99ae", "#7b2d8b", "#2e86ab", "#c05746")
_STYLE = """text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:14px;font-weight:600}.grid{stroke:#999;stroke-opacity:.35}
@media(prefers-color-scheme:dark){text{fill:#ddd}}"""


def lines(title: str, across: str, up: str, series: Mapping[str, Sequence[tuple[float, float]]], *, ticks: Mapping[float, str]) -> str:
    """A line per name through its points (x, y), both axes by decades. ticks: the places on the x axis that are named. Nothing may be ≤ 0."""
    points = [point for some in series.values() for point in some]
    x_of = _Place(min(ticks), max(ticks), LEFT, WIDTH - RIGHT)
    low, high = _decades([y for _, y in points])
    y_of = _Place(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_text(WIDTH / 2 - RIGHT / 2 + LEFT / 2, HEIGHT - 12, across, "middle"), *_rows(low, high, y_of, up)]
    parts += [_text(x_of(x), HEIGHT - BOTTOM + 18, name, "middle") for x, name in ticks.items()]
    for number, (name, some) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in some)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{3 if number == 0 else 1.8}"/>')
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>' for x, y in some]
        parts.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{TOP + 18 * number}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 30, TOP + 9 + 18 * number, name))
    return _svg(title, HEIGHT, parts)


def bars(title: str, values: Mapping[str, float], *, mark: float | None = None) -> str:
    """A bar per name; the axis goes by decades and says so. mark: a value that all are to be seen beside."""
    height = TOP + 22 * len(values) + 40
    low, high = _decades([*values.values(), *([mark] if mark else [])])
    x_of = _Place(low, high, RIGHT, WIDTH - LEFT)
    parts = _columns(low, high, x_of, height - 36)
    for number, (name, value) in enumerate(values.items()):
        y = TOP + 22 * number
        width = max(1.0, x_of(value) - RIGHT)
        parts.append(
            f'<rect x="{RIGHT}" y="{y}" width="{width:.1f}" height="14" fill="{COLOURS[0] if name.startswith("perdure") else COLOURS[6]}"/>'
        )
        parts += [_text(RIGHT - 8, y + 11, name, "end"), _text(RIGHT + width + 6, y + 11, _figure(value))]
    if mark:
        parts.append(f'<line x1="{x_of(mark):.1f}" x2="{x_of(mark):.1f}" y1="{TOP - 6}" y2="{height - 36}" stroke="{COLOURS[1]}"/>')
    return _svg(title, height, parts)


def _columns(low: float, high: float, x_of: _Place, bottom: float) -> list[str]:
    """A line down for every decade: bars by decades begin where the first one does, not at nothing."""
    parts = []
    for decade in range(round(math.log10(low)), round(math.log10(high)) + 1):
        x = x_of(10.0**decade)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, _figure(10.0**decade), "middle"))
    return [*parts, _text(16, bottom + 16, "logarithmic")]


def _figure(value: float) -> str:
    """Three digits: 25 200, 1.41, 0.0123."""
    if value >= 1000:
        return f"{round(value, 2 - math.floor(math.log10(value))):,.0f}".replace(",", "\u202f")
    return f"{value:.3g}"


def _rows(low: float, high: float, y_of: _Place, up: str) -> list[str]:
    """A line across for every decade."""
    parts = [_text(LEFT - 8, TOP - 10, up, "end")]
    for decade in range(round(math.log10(low)), round(math.log10(high)) + 1):
        y = y_of(10.0**decade)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, _figure(10.0**decade), "end"))
    return parts


def _decades(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


class _Place:
    """Where a value lies on an axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = math.log10(low), start
        self._each = (end - start) / ((math.log10(high) - self._low) or 1.0)

    def __call__(self, value: float) -> float:
        return self._start + (math.log10(value) - self._low) * self._each


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    named = f'<text class="title" x="16" y="20">{escape(title)}</text>'
    return "\n".join([head, f"<style>{_STYLE}</style>", named, *parts, "</svg>", ""])
