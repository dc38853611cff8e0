"""Plots as SVG, written by hand: bars of a ranking, lines of a growth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" role="img" font-family="system-ui, sans-serif" font-size="13">
  <title>{title}</title>
  <desc>{description}</desc>
  <style>
    text {{ fill: #1d2b3a }} .small {{ font-size: 11.5px; fill: #51626f }}
    .ours {{ fill: #1f6f8b }} .peer {{ fill: #b7c4cf }} .grid {{ stroke: #dfe6ec }}
    .back {{ fill: #ffffff }}
  </style>
  <rect class="back" width="{width}" height="{height}"/>
"""
COLOURS = ("#1f6f8b", "#c0762b", "#6b8f3a", "#8a4f7d", "#7b7b7b")


def write_bars(
    path: Path, title: str, unit: str, values: Mapping[str, float], ours: Sequence[str]
) -> None:
    """Horizontal bars, the longest first, the figures beside them."""
    ordered = sorted(values.items(), key=lambda each: -each[1])
    row, left, width = 24, 250, 760
    height = 52 + row * len(ordered) + 12
    most = max(values.values(), default=1) or 1
    description = "; ".join(f"{name}: {value:,.0f}" for name, value in ordered)
    lines = [_head(width, height, title, f"{unit}. {description}")]
    lines.append(f'  <text x="16" y="24" font-weight="600">{escape(title)}</text>')
    lines.append(f'  <text class="small" x="16" y="42">{escape(unit)}</text>')
    for number, (name, value) in enumerate(ordered):
        y = 52 + row * number
        length = max(1.0, (width - left - 90) * value / most)
        kind = "ours" if name in ours else "peer"
        lines.append(f'  <text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        lines.append(
            f'  <rect class="{kind}" x="{left}" y="{y + 3}" width="{length:.1f}" height="16" rx="2"/>'
        )
        lines.append(
            f'  <text class="small" x="{left + length + 6:.1f}" y="{y + 15}">{value:,.0f}</text>'
        )
    path.write_text("\n".join([*lines, "</svg>", ""]), encoding="utf-8")


Points = Mapping[float, float]


def write_lines(
    path: Path, title: str, x_name: str, y_name: str, series: Mapping[str, Points]
) -> None:
    """Lines over a logarithmic x axis; the y axis begins at 0."""
    width, height, left, right, top, bottom = 480, 300, 64, 16, 52, 48
    xs = sorted({x for points in series.values() for x in points})
    most = max((y for points in series.values() for y in points.values()), default=1) or 1
    step = 10 ** math.floor(math.log10(most))
    step = next(each for each in (step / 5, step / 2, step, step * 2) if most / each <= 6)
    span = math.log(xs[-1] / xs[0]) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (width - left - right) * math.log(x / xs[0]) / span,
            height - bottom - (height - top - bottom) * y / most,
        )

    description = "; ".join(
        f"{name}: " + ", ".join(f"{x:g} → {y:,.0f}" for x, y in sorted(points.items()))
        for name, points in series.items()
    )
    lines = [_head(width, height, title, f"{y_name} against {x_name}. {description}")]
    lines.append(f'  <text x="16" y="22" font-weight="600">{escape(title)}</text>')
    lines.append(f'  <text class="small" x="16" y="40">{escape(y_name)}</text>')
    for number in range(int(most / step) + 1):
        _, y = place(xs[0], number * step)
        lines.append(f'  <path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        lines.append(
            f'  <text class="small" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{number * step:,.0f}</text>"
        )
    for x in xs:
        at, _ = place(x, 0)
        anchor = "end" if x == xs[-1] else "middle"
        lines.append(
            f'  <text class="small" x="{at:.1f}" y="{height - bottom + 16}" '
            f'text-anchor="{anchor}">{x:,.0f}</text>'
        )
    lines.append(
        f'  <text class="small" x="{(left + width) / 2}" y="{height - 10}" '
        f'text-anchor="middle">{escape(x_name)}</text>'
    )
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y in sorted(points.items())]
        joined = " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        lines.append(f'  <path d="M{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in places:
            lines.append(f'  <circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
        x, y = places[-1]
        lines.append(
            f'  <text class="small" x="{x - 6:.1f}" y="{max(y - 8, top):.1f}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
    path.write_text("\n".join([*lines, "</svg>", ""]), encoding="utf-8")


def _head(width: int, height: int, title: str, description: str) -> str:
    return HEAD.format(
        width=width, height=height, title=escape(title), description=escape(description)
    ).rstrip()
