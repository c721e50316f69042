"""Small line charts with logarithmic axes as one SVG: what a table hides shows here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from xml.sax.saxutils import escape

Line: TypeAlias = list[tuple[float, float]]

WIDTH, HEIGHT, COLUMNS, LEGEND = 330, 240, 3, 18
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 14, 30, HEIGHT - 38
COLORS = ("#0b6e4f", "#7a1fa2", "#c1440e", "#1565c0", "#8d6e00", "#ad1457", "#455a64", "#5d4037", "#00838f", "#558b2f")


@dataclass(frozen=True)
class Panel:
    """One chart: what it shows, what is varied, and a line of (x, y) for each side, both above 0."""

    title: str
    across: str
    lines: Mapping[str, Line]


def picture(panels: Sequence[Panel], names: Mapping[str, str], bold: Sequence[str]) -> str:
    """All panels, three in a row, one legend beneath. `names` says what each side is called there."""
    bottom = -(-len(panels) // COLUMNS) * HEIGHT + LEGEND
    width, height = WIDTH * COLUMNS, bottom + LEGEND * -(-len(names) // COLUMNS)
    looks = {
        side: f'stroke="{COLORS[number % len(COLORS)]}" stroke-width="{3 if side in bold else 1.5}"'
        for number, side in enumerate(names)
    }
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"']
    parts += [f'font-family="sans-serif" font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>']
    for number, panel in enumerate(panels):
        at = f"translate({number % COLUMNS * WIDTH} {number // COLUMNS * HEIGHT})"
        parts.append(f'<g transform="{at}">{_chart(panel, looks)}</g>')
    for number, (side, name) in enumerate(names.items()):
        x, y = number % COLUMNS * WIDTH + LEFT, bottom + number // COLUMNS * LEGEND
        parts.append(f'<path d="M{x} {y - 4}h22" {looks[side]}/><text x="{x + 28}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _chart(panel: Panel, looks: Mapping[str, str]) -> str:
    points = [point for line in panel.lines.values() for point in line] or [(1.0, 1.0)]
    xs, marks = sorted({x for x, _ in points}), _marks([y for _, y in points])

    def across(x: float) -> float:
        return round(LEFT + _part(x, xs[0], xs[-1]) * (RIGHT - LEFT), 1)

    def up(y: float) -> float:
        return round(BOTTOM - _part(y, marks[0], marks[-1]) * (BOTTOM - TOP), 1)

    parts = [f'<text x="{LEFT}" y="18" font-weight="bold">{escape(panel.title)}</text>']
    for y in marks:
        parts.append(f'<path d="M{LEFT} {up(y)}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{up(y)}" dy="4" text-anchor="end">{y:,g}</text>')
    parts += [f'<text x="{across(x)}" y="{BOTTOM + 15}" text-anchor="middle">{x:,.0f}</text>' for x in xs]
    parts.append(f'<text x="{RIGHT}" y="{BOTTOM + 30}" text-anchor="end" fill="#666">{escape(panel.across)}</text>')
    for side, line in panel.lines.items():
        where = " ".join(f"{across(x)},{up(y)}" for x, y in line)
        parts.append(f'<polyline fill="none" {looks[side]} points="{where}"/>')
        parts += [f'<circle cx="{across(x)}" cy="{up(y)}" r="2" {looks[side]}/>' for x, y in line]
    return "".join(parts)


def _part(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _marks(values: Sequence[float]) -> list[float]:
    """Round numbers from below the least to above the greatest: powers of ten over a long way, else 1, 2 and 5."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    steps = (1,) if high - low > 3 else (1, 2, 5)
    marks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    below, above = max(m for m in marks if m <= min(values)), min(m for m in marks if m >= max(values))
    return [mark for mark in marks if below <= mark <= above]
