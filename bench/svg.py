"""A plot of lines on two logarithmic scales, as SVG; a library for it would weigh more than all that is measured."""

import math
from typing import List, NamedTuple, Sequence, Tuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 460, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 74
ASIDE = 50  # between nothing and the beginning of a logarithmic scale, which has no 0
STYLE = """<style>
text { font: 12px sans-serif; fill: #333 } .title { font-weight: bold } .axis { stroke: #333 } .grid { stroke: #ddd }
</style>"""


class Line(NamedTuple):
    """One curve; a dashed one is what the others are measured against. A point across 0 is drawn aside."""

    name: str
    points: Sequence[Tuple[float, float]]
    colour: str
    dashed: bool = False


class Panel(NamedTuple):
    title: str
    across: str
    up: str
    lines: Sequence[Line]


def plot(panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}"'
    body = [_panel(panel, WIDTH * number) for number, panel in enumerate(panels)]
    white = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, white, *body, "</svg>", ""])


def _panel(panel: Panel, shift: int) -> str:
    points = [point for line in panel.lines for point in line.points]
    across = _Scale([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Scale([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<text class="title" x="{LEFT}" y="20">{escape(panel.title)}</text>']
    for value in sorted({x for x, _ in points if not x}) + across.decades():
        name = f"{value:,}" if value else "none"
        parts.append(
            f'<line class="grid" x1="{across(value)}" x2="{across(value)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        parts.append(f'<text x="{across(value)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{name}</text>')
    for value in up.decades():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(value)}" y2="{up(value)}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(value) + 4}" text-anchor="end">{value:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - BOTTOM + 34}" text-anchor="middle">{escape(panel.across)}</text>')
    parts.append(f'<text x="8" y="{TOP - 4}">{escape(panel.up)}</text>')
    for number, line in enumerate(panel.lines):
        parts += _line(line, across, up) + _legend(line, number)
    return f'<g transform="translate({shift} 0)">' + "\n".join(parts) + "</g>"


def _line(line: Line, across: "_Scale", up: "_Scale") -> List[str]:
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    places = [(across(x), up(y)) for x, y in line.points]
    path = " ".join(f"{x},{y}" for (x, y), (value, _) in zip(places, line.points) if value)
    dots = [f'<circle cx="{x}" cy="{y}" r="3" fill="{line.colour}"/>' for x, y in places]
    return [f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>', *dots]


def _legend(line: Line, number: int) -> List[str]:
    x, y = LEFT + 190 * (number % 2), HEIGHT - 24 + 16 * (number // 2)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    stroke = f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{line.colour}" stroke-width="2"{dash}/>'
    return [stroke, f'<text x="{x + 28}" y="{y}">{escape(line.name)}</text>']


class _Scale:
    """A logarithmic scale from values to places."""

    def __init__(self, values: Sequence[float], start: float, end: float):
        self._low = math.log10(min(filter(None, values)) / 1.15)
        self._high = math.log10(max(values) * 1.15)
        self._none = start + ASIDE / 4
        self._start, self._end = start if all(values) else start + ASIDE, end

    def __call__(self, value: float) -> float:
        if not value:
            return self._none
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)

    def decades(self) -> List[int]:
        """Powers of ten, and where there are few of them what lies between."""
        exponents = range(math.floor(self._low), math.ceil(self._high) + 1)
        fine = [factor * 10**exponent for exponent in exponents if exponent >= 0 for factor in (1, 2, 5)]
        shown = [value for value in fine if self._low <= math.log10(value) <= self._high]
        return shown if len(shown) < 8 else [value for value in shown if str(value)[0] == "1"]
