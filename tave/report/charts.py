"""Curves and arrows as SVG. Colours come from the page's style sheet: classes ``a`` and ``b``, ``axis``, ``grid``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np

WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 34
ARROWS = 20  # along the longer side of the grid, at most: more can't be told apart
POINTS = 1000  # of a curve, at most


def running_median(values: Sequence[float], window: int) -> list[float]:
    """The median of up to ``window`` values around each."""
    half = window // 2
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def curves(
    lines: Sequence[tuple[str, Sequence[float]]], label: str, across: str, *, first: int = 0, log: bool = False
) -> str:
    """Curves of one length by their class (``a``, ``b``; ``dots``: without a line), with axes.

    ``label`` describes the picture for readers who don't see it, ``across`` the horizontal axis, whose first value is
    ``first``.
    """
    every = max(1, *(-(-len(values) // POINTS) for _, values in lines))
    lines = [(kind, values[::every]) for kind, values in lines]
    drawn = [value for _, values in lines for value in values if not log or value > 0]
    if not drawn:
        return ""
    low, high, ticks = _scale(min(drawn), max(drawn), log)
    count = max(len(values) for _, values in lines)

    def x(i: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i / max(1, count - 1))

    def y(value: float) -> float:
        value = math.log10(value) if log else value
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
        for tick in ticks
    ]
    for i, anchor in {0: "start", (count - 1) // 2: "middle", count - 1: "end"}.items():
        place = f'x="{x(i):.1f}" y="{HEIGHT - 16}" text-anchor="{anchor}"'
        parts.append(f"<text {place}>{i * every + first}</text>")
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 2}" text-anchor="middle">{across}</text>')
    for kind, values in lines:
        points = [(x(i), y(value)) for i, value in enumerate(values) if not log or value > 0]
        if kind.startswith("dots"):
            parts += [f'<circle class="{kind}" cx="{at:.1f}" cy="{up:.1f}" r="2"/>' for at, up in points]
        else:
            joined = " ".join(f"{at:.1f},{up:.1f}" for at, up in points)
            parts.append(f'<polyline class="{kind}" points="{joined}"/>')
    return _svg(WIDTH, HEIGHT, label, parts, "chart")


def _scale(low: float, high: float, log: bool) -> tuple[float, float, list[float]]:
    """Lowest and highest value (their logarithms if ``log``), and the ticks between them."""
    if log:
        ends = math.log10(low) - 0.05, math.log10(high) + 0.05
        marks = [m * 10.0**e for e in range(math.floor(ends[0]), math.ceil(ends[1]) + 1) for m in (1, 2, 5)]
        shown = [mark for mark in marks if ends[0] <= math.log10(mark) <= ends[1]]
        return *ends, shown if len(shown) <= 6 else [m for m in shown if round(math.log10(m), 6) % 1 == 0]
    room = 0.08 * (high - low) or max(1e-6, 0.05 * abs(high))
    low, high = low - room, high + room
    step = 10 ** math.floor(math.log10(high - low))
    step *= 1 if (high - low) / step > 3 else 0.5 if (high - low) / step > 1.5 else 0.2
    return low, high, [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def arrows(moves: np.ndarray) -> str:
    """A field `f h w 2`, right and down in cells to the next frame (NaN: none), as a group of arrows for each frame.

    Of a large grid every n-th cell is drawn.
    """
    _, height, width, _ = moves.shape
    every = -(-max(height, width) // ARROWS)
    groups = []
    for number, frame in enumerate(moves):
        lines = []
        for y, x in np.argwhere(~np.isnan(frame[..., 0])):
            if y % every or x % every:
                continue
            right, down = frame[y, x]
            if right or down:
                lines.append(f'<path d="M{x + 0.5} {y + 0.5}l{right:g} {down:g}" marker-end="url(#tip)"/>')
            else:
                lines.append(f'<circle cx="{x + 0.5}" cy="{y + 0.5}" r=".12"/>')
        groups.append(f'<g class="frame" data-frame="{number}"{" hidden" if number else ""}>{"".join(lines)}</g>')
    return _svg(width, height, "the correction's field as arrows", groups, "arrows")


TIP = (
    '<svg width="0" height="0" aria-hidden="true" class="defs"><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" '
    'markerWidth="4" markerHeight="4" orient="auto"><path d="M0 0L6 3L0 6z"/></marker></svg>'
)


def _svg(width: float, height: float, label: str, parts: Sequence[str], kind: str) -> str:
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
