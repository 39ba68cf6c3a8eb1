"""The pictures of results, as SVG that is legible on a light and on a dark page.

    lines   a figure over the number of clients, a line for each target, both axes in powers
    bars    a share for each row, from nothing to all
    stacks  times made of parts, on one scale

Each is made from figures alone, so the same result gives the same bytes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.result import figure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.result import Spread

_WIDTH = 720
_HEIGHT = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 130, 40, 46
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_BAR, _GAP, _LABEL = 16, 10, 310
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 14px }
.axis { stroke: #8c959f; stroke-width: 1 }
.grid { stroke: #8c959f; stroke-width: 1; opacity: .3 }
.line { fill: none; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
</style>"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot.

    Attributes:
        name: Stands at its end.
        points: Place on the x-axis, from 0 on, and the figure there, above 0.
    """

    name: str
    points: tuple[tuple[int, Spread], ...]


def lines(title: str, unit: str, places: Sequence[str], plotted: Sequence[Line]) -> str:
    """Return a plot of lines; vertical strokes show the spread.

    Args:
        title: Stands above.
        unit: Of the figures.
        places: Names of the places on the x-axis.
        plotted: At least one line with a point.
    """
    figures = [value for line in plotted for _, spread in line.points for value in (spread.low, spread.high)]
    low, high = math.floor(math.log10(min(figures))), math.ceil(math.log10(max(figures)))
    scale = _Scale(low, max(high, low + 1), len(places))
    parts = [_text(_LEFT, 20, title, "title"), *_axes(scale, unit, places)]
    ends = _apart([scale.y(line.points[-1][1].middle) for line in plotted])
    for number, (line, end) in enumerate(zip(plotted, ends, strict=True)):
        color = _COLORS[number % len(_COLORS)]
        path = " ".join(f"{scale.x(place):.1f},{scale.y(spread.middle):.1f}" for place, spread in line.points)
        parts.append(f'<polyline class="line" stroke="{color}" points="{path}"/>')
        for place, spread in line.points:
            x = scale.x(place)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(spread.low):.1f}" y2="{scale.y(spread.high):.1f}" '
                f'stroke="{color}" stroke-width="2"/>'
            )
            parts.append(f'<circle cx="{x:.1f}" cy="{scale.y(spread.middle):.1f}" r="4" fill="{color}"/>')
        x = scale.x(line.points[-1][0]) + 10
        parts.append(f'<circle cx="{x:.1f}" cy="{end - 4:.1f}" r="4" fill="{color}"/>')
        parts.append(_text(x + 8, end, line.name))
    return _svg(_HEIGHT, title, parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a figure is in the picture: powers of ten from `low` to `high`, and so many places."""

    low: int
    high: int
    places: int

    def x(self, place: int) -> float:
        return _LEFT + (place + 0.5) * (_WIDTH - _LEFT - _RIGHT) / self.places

    def y(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axes(scale: _Scale, unit: str, places: Sequence[str]) -> Iterable[str]:
    """Yield axes, grid and their labels."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for power in range(scale.low, scale.high + 1):
        y = scale.y(10.0**power)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 8, y + 4, f"{10.0**power:,.0f}", anchor="end")
    yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    for place, name in enumerate(places):
        yield _text(scale.x(place), bottom + 18, name, anchor="middle")
    yield _text((_LEFT + right) / 2, _HEIGHT - 8, "clients", anchor="middle")
    yield _text(right, 20, unit, anchor="end")


def _apart(heights: Sequence[float], least: float = 16.0) -> list[float]:
    """Return heights of labels that do not cover each other, in the order given."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    moved = list(heights)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    return [height + 4 for height in moved]


def bars(title: str, shares: Sequence[tuple[str, Spread]]) -> str:
    """Return a plot of horizontal bars.

    Args:
        title: Stands above.
        shares: Name and share of each row; 1 is the whole width.
    """
    full = _WIDTH - _LABEL - 110
    parts = [_text(10, 20, title, "title")]
    for number, (name, share) in enumerate(shares):
        y = _TOP + number * (_BAR + _GAP)
        width = min(share.middle, 1.0) * full
        parts.append(_text(_LABEL - 8, y + 12, name, anchor="end"))
        parts.append(f'<rect x="{_LABEL}" y="{y}" width="{full}" height="{_BAR}" rx="3" fill="#8c959f" opacity=".2"/>')
        parts.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="3" fill="{_COLORS[0]}"/>')
        low, high = (_LABEL + min(value, 1.0) * full for value in (share.low, share.high))
        middle = y + _BAR / 2
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{_COLORS[1]}" stroke-width="3"/>'
        )
        parts.append(_text(_LABEL + full + 8, y + 12, f"{figure(share.middle * 100)} %"))
    return _svg(_TOP + len(shares) * (_BAR + _GAP) + 10, title, parts)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, title: str, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", _STYLE, *parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class Stack:
    """One bar of parts.

    Attributes:
        name: Stands before it.
        parts: Lengths, in the order of the legend.
        note: Stands behind it.
    """

    name: str
    parts: tuple[float, ...]
    note: str


def stacks(title: str, unit: str, legend: Sequence[str], stacked: Sequence[Stack]) -> str:
    """Return a plot of horizontal bars of parts, all on one scale.

    Args:
        title: Stands above.
        unit: Of the lengths.
        legend: Name of each part.
        stacked: At least one bar.
    """
    left, full = 170.0, _WIDTH - 170.0 - 190.0
    scale = full / max(sum(stack.parts) for stack in stacked)
    parts = [_text(10, 20, title, "title")]
    for number, name in enumerate(legend):
        at = 10 + number * 90
        parts.append(f'<rect x="{at}" y="32" width="12" height="12" rx="2" fill="{_COLORS[number % len(_COLORS)]}"/>')
        parts.append(_text(at + 18, 42, name))
    for number, stack in enumerate(stacked):
        y, x = _TOP + 22 + number * (_BAR + _GAP), left
        parts.append(_text(left - 8, y + 12, stack.name, anchor="end"))
        for color, length in zip(itertools.cycle(_COLORS), stack.parts, strict=False):
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{length * scale:.1f}" height="{_BAR}" fill="{color}"/>')
            x += length * scale
        parts.append(_text(x + 8, y + 12, f"{figure(sum(stack.parts))} {unit}, {stack.note}"))
    return _svg(_TOP + 22 + len(stacked) * (_BAR + _GAP) + 10, title, parts)
