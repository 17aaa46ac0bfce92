"""Bars and time axes as inline SVG: a lane a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from sparsetrain.track.account import Account, Candidate
from sparsetrain.track.chart import Axis, Scale, escape, figure, linear, looks, scale, short
from sparsetrain.track.digest import PARTS

WIDTH = 400
LANE = 34
SIDE = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lane:
    """A run's name, and the number that gives its colour."""

    name: str
    slot: int


def stacked(key: str, title: str, lanes: Sequence[tuple[Lane, Mapping[str, float]]]) -> str:
    """Return a figure of where a step's time goes: mean milliseconds of each part, one bar a run."""
    shown = [(lane, parts) for lane, parts in lanes if sum(parts.values()) > 0]
    if not shown:
        return figure(key, title, '<p class="none">not recorded</p>')
    longest = max(sum(parts.values()) for _, parts in shown)
    across = Scale(low=0.0, high=longest, start=SIDE, stop=WIDTH - SIDE)
    body = []
    for number, (lane, parts) in enumerate(shown):
        top, at = number * LANE, 0.0
        body.append(_name(lane, top, f"{1e3 * sum(parts.values()):.4g} ms"))
        for index, part in enumerate(PARTS):
            if seconds := parts.get(part, 0.0):
                width = across.at(at + seconds) - across.at(at)
                said = f"{part.replace('_', ' + ')}: {1e3 * seconds:.4g} ms"
                body.append(
                    f'<rect class="p{index}" x="{across.at(at):.1f}" y="{top + 17}" width="{max(0.0, width - 1):.1f}" '
                    f'height="11" rx="1.5"><title>{escape(said)}</title></rect>'
                )
                at += seconds
    legend = "".join(f'<span class="key p{n}">{part.replace("_", " + ")}</span>' for n, part in enumerate(PARTS))
    return figure(key, title, f'{_svg(title, len(shown) * LANE, body)}<p class="keys">{legend}</p>', "ms")


def paired(key: str, title: str, candidates: Sequence[Candidate]) -> str:
    """Return a figure of seconds a step, predicted (open) above measured (filled), for each way to exchange."""
    times = [each for pair in ((c.predicted, c.measured) for c in candidates) for each in pair if each is not None]
    if not times or max(times) <= 0:
        return figure(key, title, '<p class="none">not recorded</p>')
    across = Scale(low=0.0, high=max(times), start=SIDE, stop=WIDTH - SIDE - 60)
    body = []
    for number, each in enumerate(candidates):
        top = number * (LANE + 10)
        mark = " (chosen)" if each.chosen else ""
        body.append(f'<text class="lane" x="{SIDE}" y="{top + 12}">{escape(each.name)}{mark}</text>')
        for row, (kind, value) in enumerate((("predicted", each.predicted), ("measured", each.measured))):
            if value is not None:
                y, width = top + 17 + 11 * row, max(1.0, across.at(max(0.0, value)) - SIDE)
                body.append(
                    f'<rect class="{kind}" x="{SIDE}" y="{y}" width="{width:.1f}" height="9" rx="1.5"/>'
                    f'<text class="small" x="{SIDE + width + 4:.1f}" y="{y + 8}">{1e3 * value:.4g} ms</text>'
                )
    keys = '<p class="keys"><span class="key predicted">predicted</span><span class="key measured">measured</span></p>'
    return figure(key, title, _svg(title, len(candidates) * (LANE + 10), body) + keys, "ms a step", wide=True)


def timeline(key: str, title: str, lanes: Sequence[tuple[Lane, Account]]) -> str:
    """Return a figure of what befell each run, in seconds since it began: faults as bars as long as they held the run
    up, alerts as triangles."""
    spans = {lane.slot: span for lane, told in lanes if (span := _span(told)) is not None}
    shown = [(lane, told) for lane, told in lanes if lane.slot in spans]
    if not shown:
        return figure(key, title, '<p class="none">no times are known</p>')
    longest = max(stop - start for start, stop in spans.values())
    across = scale([0.0, longest], SIDE, WIDTH - SIDE, Axis(label="", zero=True))
    body = []
    for number, (lane, told) in enumerate(shown):
        top, (start, stop) = number * LANE, spans[lane.slot]
        faults = sum(event.fault for event in told.events)
        body.append(_name(lane, top, f"faults {faults}, alerts {len(told.events) - faults}"))
        body.append(f'<path class="run {looks(lane.slot)}" d="M{SIDE} {top + 23}H{across.at(stop - start):.1f}"/>')
        for event in told.events:
            x, said = across.at(event.at - start), escape(f"step {event.step}: {event.kind}: {event.text}")
            if event.fault:
                back = max(3.0, x - across.at(max(0.0, event.at - start - event.seconds)))
                shape = (
                    f'<rect class="fault" x="{x - back:.1f}" y="{top + 17}" width="{back:.1f}" height="12" rx="1.5">'
                )
                body.append(f"{shape}<title>{said}</title></rect>")
            else:
                shape = f"M{x - 4:.1f} {top + 29}h8l-4 -9z"
                body.append(f'<path class="alert" d="{shape}"><title>{said}</title></path>')
    foot = len(shown) * LANE + 4
    for value in linear(0.0, longest, 5):
        anchor = "x" if value else "x first"
        body.append(f'<text class="{anchor}" x="{across.at(value):.1f}" y="{foot + 10}">{short(value)} s</text>')
    keys = '<p class="keys"><span class="key fault">fault, until a step was finished</span>'
    keys += '<span class="key alert">alert</span></p>'
    return figure(key, title, _svg(title, foot + 16, body) + keys, "since the run began")


def spark(values: Sequence[tuple[float, float]], slot: int) -> str:
    """Return a small curve without axes, from 0 up."""
    if len(values) < 2:
        return ""
    across = scale([x for x, _ in values], 1, 119, Axis(label=""))
    up = scale([y for _, y in values], 23, 2, Axis(label="", zero=True))
    path = "M" + "L".join(f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in values)
    return f'<svg class="spark {looks(slot)}" viewBox="0 0 120 24" aria-hidden="true"><path d="{path}"/></svg>'


def _span(told: Account) -> tuple[float, float] | None:
    """Return when the run began and ended, events included."""
    times = [time for event in told.events for time in (event.at - event.seconds, event.at)]
    times += [time for time in (told.began, told.ended) if time is not None]
    return (min(times), max(times)) if times and max(times) > min(times) else None


def _name(lane: Lane, top: int, said: str) -> str:
    name = f'<text class="lane" x="{SIDE}" y="{top + 12}">{escape(_clip(lane.name, 36))}</text>'
    return f'{name}<text class="lane end" x="{WIDTH - SIDE}" y="{top + 12}">{escape(said)}</text>'


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    head = f'<svg class="bars" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return f"{head}{''.join(body)}</svg>"
