"""Curves as inline SVG: one figure a chart, drawn for a phone's width and stretched where there is more."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

from sparsetrain.track.console import clean

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 34
COLORS = 8  # then they come again, dashed
TINY = 1e-300  # no logarithm below it
FAR = 1e150  # beyond it, differences are no numbers
Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """`slot` is the number of its run, which gives colour and dashes; `look`: "", "faint", "dots", "second"."""

    name: str
    slot: int
    points: Points
    look: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """What is shown along a side."""

    label: str
    log: bool = False
    zero: bool = False  # it begins at 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """Return round values between low and high, about `most`."""
        if not self.log:
            return linear(self.low, self.high, most)
        found = decades(self.low, self.high, most)
        return found if len(found) > 1 else linear(self.low, self.high, most)


def figure(key: str, title: str, body: str, unit: str = "", wide: bool = False) -> str:
    """Return a figure with its title; `body` is HTML."""
    small = f" <small>{escape(unit)}</small>" if unit else ""
    kind = ' class="wide"' if wide else ""
    return f'<figure id="{key}"{kind}><figcaption>{escape(title)}{small}</figcaption>{body}</figure>\n'


def chart(key: str, title: str, curves: Sequence[Curve], x: Axis, y: Axis) -> str:
    """Return a figure of curves; one that says so where none has a point."""
    drawn = [dataclasses.replace(curve, points=_visible(curve.points, x.log, y.log)) for curve in curves]
    drawn = [curve for curve in drawn if curve.points]
    if not drawn:
        return figure(key, title, '<p class="none">not recorded</p>', y.label)
    across = scale([p[0] for curve in drawn for p in curve.points], LEFT, WIDTH - RIGHT, x)
    up = scale([p[1] for curve in drawn for p in curve.points], HEIGHT - BOTTOM, TOP, y)
    lines = "".join(_curve(curve, across, up) for curve in drawn)
    data = f'data-x="{_span(across)}" data-y="{_span(up)}"'
    label = f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 4}">{escape(x.label)}</text>'
    body = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" {data}>'
    return figure(key, title, f"{body}{_grid(across, up)}{lines}{label}</svg>", y.label)


def scale(values: Sequence[float], start: float, stop: float, axis: Axis) -> Scale:
    """Return the scale that holds the values, with a little room."""
    low, high = min(values), max(values)
    if axis.zero and not axis.log:
        low, high = min(low, 0.0), max(high, 0.0)
    if axis.log:
        low, high = (low, high) if high > low * 1.01 else (low / 2, high * 2)
        return Scale(low=low, high=high, start=start, stop=stop, log=True)
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    room = 0.0 if axis.zero else (high - low) * 0.02
    return Scale(low=low - room, high=high + (high - low) * 0.02, start=start, stop=stop)


def linear(low: float, high: float, most: int) -> list[float]:
    """Return round values from low to high: multiples of 1, 2 or 5 times a power of ten, at most about `most`."""
    raw = (high - low) / max(1, most)
    if not (raw > 0 and math.isfinite(raw)):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * each for each in (1, 2, 5) if power * each >= raw), power * 10)
    first = math.ceil(low / step)
    return [step * (first + n) for n in range(most + 2) if step * (first + n) <= high * (1 + 1e-12) + 1e-300]


def decades(low: float, high: float, most: int) -> list[float]:
    """Return powers of ten from low to high, with 2 and 5 between them where there is room."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first + 1) // most)
    between = (1, 2, 5) if (last - first) * 3 <= most * 1.5 else (1,)
    return [
        value
        for power in range(first, last + 1, every)
        for each in between
        if low * 0.999 <= (value := each * 10.0**power) <= high * 1.001
    ]


def short(value: float) -> str:
    """Return a number in few characters: 1500000 is 1.5M."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1e-3 or not value else f"{value:.1e}".replace("e-0", "e-")


def escape(text: str) -> str:
    """Return a text that is nothing but text in HTML, also in an attribute."""
    return html.escape(clean(text), quote=True)


def looks(slot: int) -> str:
    """Return the classes of a run's colour and dashes."""
    return f"s{slot % COLORS} d{slot // COLORS % 3}"


def _visible(points: Points, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in points
        if (x > TINY or not log_x) and (y > TINY or not log_y) and abs(x) < FAR and abs(y) < FAR
    ]


def _span(scale: Scale) -> str:
    return f"{scale.low!r} {scale.high!r} {scale.start:g} {scale.stop:g} {int(scale.log)}"


def _grid(across: Scale, up: Scale) -> str:
    parts = []
    for value in up.ticks(5):
        y = up.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="y" x="{LEFT - 5}" y="{y + 3.5:.1f}">{short(value)}</text>')
    for value in across.ticks(5):
        x = across.at(value)
        parts.append(f'<path class="tick" d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text class="x" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}">{short(value)}</text>')
    return "".join(parts) + f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'


def _curve(curve: Curve, across: Scale, up: Scale) -> str:
    places = [(across.at(x), up.at(y)) for x, y in curve.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    kind = f"{looks(curve.slot)} {curve.look}".strip()
    dots = ""
    if (curve.look == "dots" and len(places) <= 60) or len(places) == 1:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in places)
    name = escape(curve.name)
    return f'<g class="{kind}" data-name="{name}"><title>{name}</title><path d="{path}"/>{dots}</g>'
