"""Line charts as SVG text, for reports that must stand alone."""

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 420, 220
"""Of a chart, in pixels."""

LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 40
COLOURS = ("#1f6fb4", "#d1603d", "#3a8f4d", "#7a56a3", "#8a6d3b", "#555555")


@dataclasses.dataclass(frozen=True)
class Line:
    """points: (x, y), by x. band: (x, low, high) of a confidence band around them, or empty."""

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


def line_chart(lines: Sequence[Line]) -> str:
    """One chart of at least one line with at least one point -> an `<svg>` element; lines of one point are dots."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *pair in line.band for y in pair]
    across, down = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT), _Scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = [_axes(across, down)]
    for number, line in enumerate(lines):
        parts += _drawn(line, across, down, COLOURS[number % len(COLOURS)])
        left = LEFT + number * (WIDTH - LEFT) / max(len(lines), 1)
        colour = COLOURS[number % len(COLOURS)]
        label = html.escape(line.label)
        parts.append(f'<text x="{left:.0f}" y="{HEIGHT - 6}" fill="{colour}" font-size="11">{label}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">{"".join(parts)}</svg>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


class _Scale:
    """Numbers of [low, high] -> pixels of [begin, end]; an empty range is widened."""

    def __init__(self, low: float, high: float, begin: float, end: float):
        if not high > low:
            low, high = low - max(abs(low), 1) * 0.05, high + max(abs(high), 1) * 0.05
        self.low, self.high, self.begin, self.end = low, high, begin, end

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)


def _axes(across: _Scale, down: _Scale) -> str:
    parts = [f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#999"/>']
    for value in ticks(down.low, down.high):
        y = down(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#eee"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end" font-size="10">{value:.4g}</text>')
    for value in ticks(across.low, across.high):
        y = HEIGHT - BOTTOM + 13
        parts.append(f'<text x="{across(value):.1f}" y="{y}" text-anchor="middle" font-size="10">{value:.4g}</text>')
    return "".join(parts)


def _drawn(line: Line, across: _Scale, down: _Scale, colour: str) -> list[str]:
    parts = []
    if line.band:
        upper = [f"{across(x):.1f},{down(high):.1f}" for x, _, high in line.band]
        lower = [f"{across(x):.1f},{down(low):.1f}" for x, low, _ in reversed(line.band)]
        parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" fill-opacity="0.15"/>')
    points = [f"{across(x):.1f},{down(y):.1f}" for x, y in line.points]
    parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    if len(points) <= 3:
        dots = (point.split(",") for point in points)
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
    return parts
