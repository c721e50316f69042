"""Small charts with logarithmic axes as one SVG: what a table hides shows here.

A chart of dots compares sides at one point, a chart of lines shows how each goes along. Everything is labelled where it
stands. The picture brings its own ground, light or dark as its reader's screen is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias
from xml.sax.saxutils import escape

Line: TypeAlias = list[tuple[float, float]]

WIDTH, HEIGHT, COLUMNS, HEAD = 480, 240, 2, 30
LEFT, RIGHT, TOP, BOTTOM = 58, 310, 36, HEIGHT - 42
NAMES_END, DOTS_END = 188, WIDTH - 64
LABEL = 13
"""The height of a line's label."""

LIGHT = ("#04724d", "#0757b8", "#57606a", "#a3400c", "#7a35c9", "#b02a76", "#7d5600", "#0b6b78", "#6b4630", "#4f6b00")
DARK = ("#45c490", "#6cb0ff", "#9aa4ae", "#f08b4f", "#c39bff", "#f584bd", "#d9ad3c", "#4cc3cf", "#cfa283", "#a9c94a")
_STYLE = ".ground{{fill:{ground}}}.ink{{fill:{ink}}}.quiet{{fill:{quiet}}}.grid{{stroke:{grid}}}{sides}"


@dataclass(frozen=True)
class Lines:
    """One chart: what it shows, what is varied, and a line of (x, y) for each side, both above 0."""

    title: str
    across: str
    lines: Mapping[str, Line]


@dataclass(frozen=True)
class Dots:
    """One chart: what it shows, and a value above 0 for each side, from above downwards."""

    title: str
    values: Mapping[str, float]


Panel: TypeAlias = Lines | Dots


@dataclass(frozen=True)
class Look:
    """How a side is drawn: what it is called, thick where it is ours, dashed where nothing it answers is durable."""

    name: str
    is_thick: bool = False
    is_dashed: bool = False

    @property
    def stroke(self) -> str:
        width = 'stroke-width="3"' if self.is_thick else 'stroke-width="1.5"'
        return f'{width} stroke-dasharray="4 3"' if self.is_dashed else width


def picture(title: str, panels: Sequence[Panel], looks: Mapping[str, Look]) -> str:
    """All panels, two in a row. The sides' colors follow the order of `looks`."""
    width, height = WIDTH * COLUMNS, HEAD + -(-len(panels) // COLUMNS) * HEIGHT
    numbers = {side: number for number, side in enumerate(looks)}
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"']
    parts += ['font-family="system-ui, sans-serif" font-size="12">', f"<style>{_styles()}</style>"]
    parts += [f'<rect class="ground" width="{width}" height="{height}"/>']
    parts += [f'<text class="ink" x="{width / 2}" y="22" text-anchor="middle" font-size="14">{escape(title)}</text>']
    for number, panel in enumerate(panels):
        at = f"translate({number % COLUMNS * WIDTH} {HEAD + number // COLUMNS * HEIGHT})"
        chart = _lines(panel, looks, numbers) if isinstance(panel, Lines) else _dots(panel, looks, numbers)
        parts.append(f'<g transform="{at}">{chart}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _styles() -> str:
    light = {"ground": "#ffffff", "ink": "#1f2328", "quiet": "#59636e", "grid": "#dfe3e8"}
    dark = {"ground": "#0d1117", "ink": "#e6edf3", "quiet": "#9198a1", "grid": "#2a313a"}
    both = []
    for ground, colors in ((light, LIGHT), (dark, DARK)):
        sides = "".join(f".s{number}{{color:{color}}}" for number, color in enumerate(colors))
        both.append(_STYLE.format(**ground, sides=sides))
    return f"{both[0]}@media (prefers-color-scheme:dark){{{both[1]}}}"


def _dots(panel: Dots, looks: Mapping[str, Look], numbers: Mapping[str, int]) -> str:
    """A row for each side: its name, and a dot that says its value."""
    marks = _marks([*panel.values.values()] or [1.0])
    row = (BOTTOM - TOP) / max(len(panel.values), 1)

    def across(value: float) -> float:
        return round(NAMES_END + _part(value, marks[0], marks[-1]) * (DOTS_END - NAMES_END), 1)

    parts = [f'<text class="ink" x="{LEFT}" y="20" font-weight="bold">{escape(panel.title)}</text>']
    for mark in _spaced(marks, across):
        parts.append(f'<path class="grid" d="M{across(mark)} {TOP}V{BOTTOM}"/>')
        parts.append(
            f'<text class="quiet" x="{across(mark)}" y="{BOTTOM + 16}" text-anchor="middle">{_count(mark)}</text>'
        )
    for number, (side, value) in enumerate(panel.values.items()):
        look, x, y = looks[side], across(value), round(TOP + (number + 0.5) * row, 1)
        weight = ' font-weight="bold"' if look.is_thick else ""
        dot = f'<circle cx="{x}" cy="{y}" r="{5 if look.is_thick else 4}"'
        dot += ' fill="none" stroke="currentColor" stroke-width="1.5"/>' if look.is_dashed else "/>"
        parts.append(
            f'<g class="s{numbers[side] % len(LIGHT)}" fill="currentColor"{weight}>'
            f'<text x="{NAMES_END - 12}" y="{y}" dy="4" text-anchor="end">{escape(look.name)}</text>{dot}'
            f'<text x="{x + 9}" y="{y}" dy="4">{_short(value)}</text></g>'
        )
    return "".join(parts)


def _count(number: float) -> str:
    """A number on an axis, where there is little room."""
    if number < 10_000:
        return f"{number:,g}"
    return f"{number / 1000:g}k" if number < 1_000_000 else f"{number / 1_000_000:g}M"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spaced(marks: Sequence[float], across: Callable[[float], float]) -> list[float]:
    """Those marks whose labels have room: powers of ten where all of them have none."""
    if min((across(high) - across(low) for low, high in pairwise(marks)), default=math.inf) > 34:
        return [*marks]
    return [mark for mark in marks if math.log10(mark) % 1 < 1e-9]


def _lines(panel: Lines, looks: Mapping[str, Look], numbers: Mapping[str, int]) -> str:
    points = [point for line in panel.lines.values() for point in line] or [(1.0, 1.0)]
    xs, marks = sorted({x for x, _ in points}), _marks([y for _, y in points])

    def across(x: float) -> float:
        return round(LEFT + _part(x, xs[0], xs[-1]) * (RIGHT - LEFT), 1)

    def up(y: float) -> float:
        return round(BOTTOM - _part(y, marks[0], marks[-1]) * (BOTTOM - TOP), 1)

    parts = [f'<text class="ink" x="{LEFT}" y="20" font-weight="bold">{escape(panel.title)}</text>']
    for y in marks:
        parts.append(f'<path class="grid" d="M{LEFT} {up(y)}H{RIGHT}"/>')
        parts.append(f'<text class="quiet" x="{LEFT - 6}" y="{up(y)}" dy="4" text-anchor="end">{y:,g}</text>')
    below = 'class="quiet" text-anchor="middle"'
    parts += [f'<text {below} x="{across(x)}" y="{BOTTOM + 16}">{_count(x)}</text>' for x in xs]
    parts.append(f'<text {below} x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 32}">{escape(panel.across)}</text>')
    drawn = {side: [(across(x), up(y)) for x, y in line] for side, line in panel.lines.items()}
    labels = _apart({side: line[-1][1] for side, line in drawn.items()})
    for side in sorted(drawn, key=lambda side: looks[side].is_thick):  # ours on top
        line = _line(drawn[side], looks[side], labels[side])
        parts.append(f'<g class="s{numbers[side] % len(LIGHT)}" fill="currentColor" stroke="currentColor">{line}</g>')
    return "".join(parts)


def _line(points: Line, look: Look, label: float) -> str:
    where = " ".join(f"{x},{y}" for x, y in points)
    x, y = points[-1]
    weight = ' font-weight="bold"' if look.is_thick else ""
    return "".join(
        [
            f'<polyline fill="none" {look.stroke} points="{where}"/>',
            *(f'<circle cx="{x}" cy="{y}" r="2.5" stroke="none"/>' for x, y in points),
            f'<path d="M{x + 5} {y}L{RIGHT + 12} {label}" stroke-width="0.6" opacity="0.6"/>',
            f'<text x="{RIGHT + 15}" y="{label}" dy="4" stroke="none"{weight}>{escape(look.name)}</text>',
        ]
    )


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Where labels go: beside the ends of their lines, or as near as they do not cover each other."""
    placed: dict[str, float] = {}
    below = -math.inf
    for side, y in sorted(ends.items(), key=lambda item: item[1]):
        below = placed[side] = max(y, below + LABEL)
    above = float(BOTTOM + LABEL)
    for side, y in reversed(placed.items()):
        above = placed[side] = min(y, above - LABEL)
    return {side: round(y, 1) for side, y in placed.items()}


def _part(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _marks(values: Sequence[float]) -> list[float]:
    """Round numbers from below the least to above the greatest: powers of ten over a long way, else 1, 2 and 5."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    steps = (1,) if high - low > 3 else (1, 2, 5)
    marks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    below, above = max(m for m in marks if m <= min(values)), min(m for m in marks if m >= max(values))
    return [mark for mark in marks if below <= mark <= above]
