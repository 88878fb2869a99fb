"""The two plots of the report, as HTML and SVG that take their colours from the page: no script, no image, no font."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rag.statistics import Interval

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 14, 44
_LINE = 16  # least distance of two labels, in units of the drawing


@dataclass(frozen=True, slots=True)
class Mark:
    """One arm in a plot; `look` is "", "chosen" or "bound"."""

    name: str
    quality: Interval
    cost: float
    look: str = ""


def interval_plot(marks: Sequence[Mark], metric: str) -> str:
    """Means as dots on their intervals, one row for each arm, from 0 to a round number above the highest end."""
    top = _above(max((m.quality.high for m in marks), default=1.0))
    rows = []
    for mark in marks:
        low, high, mean = (
            100 * min(max(v / top, 0.0), 1.0) for v in (mark.quality.low, mark.quality.high, mark.quality.mean)
        )
        rows.append(
            f'<div class="row {mark.look}"><span class="name">{escape(mark.name)}</span><span class="track">'
            f'<span class="range" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
            f'<span class="dot" style="left:{mean:.2f}%"></span></span><span>{mark.quality.mean:.3f}</span></div>'
        )
    said = "; ".join(f"{m.name} {m.quality}" for m in marks)
    ticks = "".join(f'<span style="left:{25 * i}%">{top * i / 4:g}</span>' for i in range(5))
    return (
        f'<div class="intervals" role="img" aria-label="{escape(metric)} of each arm with its interval: '
        f'{escape(said)}">'
        f'{"".join(rows)}<span class="axis">{ticks}</span></div>'
    )


def scatter_plot(marks: Sequence[Mark], front: Sequence[str], metric: str) -> str:
    """Quality over cost of a question, the arms that no other beats in both joined by a line."""
    costs = [m.cost for m in marks if m.cost > 0] or [1.0]
    logarithmic = max(costs) / min(costs) > 8
    low, high = (min(costs) / 1.5, max(costs) * 1.5) if logarithmic else (0.0, max(costs) * 1.15)
    top = _above(max((m.quality.high for m in marks), default=1.0))

    def x(cost: float) -> float:
        share = math.log(max(cost, low) / low) / math.log(high / low) if logarithmic else cost / high
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(quality: float) -> float:
        return _HEIGHT - _BOTTOM - min(max(quality / top, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg class="scatter" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(metric)} over seconds for each question, one dot for each arm">'
    ]
    for i in range(5):
        value = top * i / 4
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for tick in _ticks(low, high, logarithmic):
        parts.append(
            f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_short(tick, high)}</text>'
        )
    axis = "Cost of a question" + (" (logarithmic)" if logarithmic else "")
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{axis} →</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP - 2}">{escape(metric)} ↑</text>')
    by_name = {m.name: m for m in marks}
    line = " ".join(f"{x(by_name[a].cost):.1f},{y(by_name[a].quality.mean):.1f}" for a in front if a in by_name)
    parts.append(f'<polyline class="front" points="{line}"/>')
    labels = _spread([(x(m.cost), y(m.quality.mean)) for m in marks])
    for mark in marks:
        at, ends = x(mark.cost), (y(mark.quality.low), y(mark.quality.high))
        parts.append(
            f'<g class="{mark.look}"><line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{ends[0]:.1f}" '
            f'y2="{ends[1]:.1f}"/><circle cx="{at:.1f}" cy="{y(mark.quality.mean):.1f}" r="6.5"/></g>'
        )
    for mark, level in zip(marks, labels, strict=True):  # after all dots, so that no whisker crosses a name
        left = x(mark.cost) + 12 + 8 * len(mark.name) > _WIDTH  # 8: a bold letter of 13 px, with room
        at, anchor = x(mark.cost) + (-12 if left else 12), "end" if left else "start"
        parts.append(
            f'<g class="{mark.look}"><text class="label" x="{at:.1f}" y="{level + 4:.1f}" text-anchor="{anchor}">'
            f"{escape(mark.name)}</text></g>"
        )
    return "".join(parts) + "</svg>"


def _above(value: float) -> float:
    """The next round number at or above a quality, so that four steps to it are readable."""
    return next((t for t in (0.04, 0.08, 0.2, 0.4, 0.6, 0.8, 1.0) if value <= t), math.ceil(value))


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    exponents = range(math.floor(math.log10(max(low, high / 1000, 1e-9))) - 1, math.ceil(math.log10(high)) + 1)
    nice = [step * 10.0**e for e in exponents for step in (1, 2, 5)]
    if logarithmic:
        inside = [t for t in nice if low <= t <= high]
        return inside[:: math.ceil(len(inside) / 5)] if inside else [high]
    step = next((t for t in nice if high / t <= 6), high)
    return [step * i for i in range(1, int(high / step) + 1)]


def _short(value: float, high: float) -> str:
    return f"{value:g} s" if high >= 1 else f"{value * 1000:g} ms"


def _spread(points: Sequence[tuple[float, float]]) -> list[float]:
    """Heights of labels: those of dots near each other are moved apart, downwards in order of height."""
    heights = [y for _, y in points]
    order = sorted(range(len(points)), key=lambda i: points[i][1])
    for position, i in enumerate(order):
        for j in order[:position]:
            if abs(points[i][0] - points[j][0]) < 110 and heights[i] - heights[j] < _LINE:
                heights[i] = heights[j] + _LINE
    return heights
