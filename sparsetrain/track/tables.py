"""Tables of a page: runs to compare, layers, ranks, events. Each scrolls in a box of its own."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from sparsetrain.track.account import Decision, Event, Rank
from sparsetrain.track.bars import Lane, spark
from sparsetrain.track.chart import escape, looks
from sparsetrain.track.compare import Line, Run, lines_of
from sparsetrain.track.console import size

DENSITY, CHURN, WEIGHTS = "density/", "churn/", "weights/"  # before a layer's name in a row of layers.jsonl


def comparison(lanes: Sequence[Lane], runs: Sequence[Run]) -> str:
    """Return the table of runs, which a click on a head sorts."""
    lines = lines_of(runs)
    parent, heads = "", [_head("run", "text")]
    for line in lines:
        inner = line.title.startswith(" ")
        parent = parent if inner else line.title
        heads.append(_head(f"{parent}: {line.title.strip()}" if inner else line.title, "tall"))
    rows = []
    for number, lane in enumerate(lanes):
        cells = "".join(_sorted(line, number) for line in lines)
        rows.append(f'<tr><td data-v="{escape(lane.name)}">{swatch(lane)}</td>{cells}</tr>')
    return _table("".join(heads), rows, "sortable")


def tiles(run: Run) -> str:
    """Return the figures of one run, large."""
    cells = "".join(
        f"<div><dt>{escape(line.title.strip())}</dt><dd>{escape(line.cells[0])}</dd></div>" for line in lines_of([run])
    )
    return f'<dl class="tiles">{cells}</dl>'


def layers(lane: Lane, rows: Sequence[Mapping[str, float]], most: int) -> tuple[str, int]:
    """Return the table of a run's masked layers and how many they are: density and churn over time, and at last. At
    most `most` layers are shown; "" where none has been recorded."""
    names = list(dict.fromkeys(key.removeprefix(DENSITY) for row in rows for key in row if key.startswith(DENSITY)))
    body = []
    for name in names[:most]:
        density, churn = (_series(rows, kind + name) for kind in (DENSITY, CHURN))
        weights = next((row[WEIGHTS + name] for row in reversed(rows) if WEIGHTS + name in row), None)
        cells = [f'<td class="text">{escape(name)}</td>', _cell("-" if weights is None else f"{weights:,.0f}", weights)]
        for series in (density, churn):
            last = series[-1][1] if series else None
            cells.append(_cell("-" if last is None else f"{100 * last:.3g} %", last))
            cells.append(f"<td>{spark(series, lane.slot)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        return "", 0
    heads = [_head("layer", "text"), _head("weights"), _head("density"), "<th>over time</th>", _head("churn")]
    return _table("".join([*heads, "<th>over time</th>"]), body, "sortable"), len(names)


def ranks(lanes: Sequence[tuple[Lane, Sequence[Rank]]], most: int) -> str:
    """Return the table of which rank runs where, at most `most` of each run; "" where no run says."""
    body = [
        f"<tr><td>{swatch(lane)}</td>{_cell(str(each.rank), each.rank)}<td>{escape(each.host)}</td>"
        f"<td>{escape(each.node[:12])}</td>{_cell(str(each.pid), each.pid)}</tr>"
        for lane, placed in lanes
        for each in placed[:most]
    ]
    heads = "".join(_head(title) for title in ("run", "rank", "host", "node", "process"))
    return _table(heads, body, "sortable") if body else ""


def events(lanes: Sequence[tuple[Lane, Sequence[Event]]], most: int) -> str:
    """Return the table of faults and alerts, the last `most` of each run; "" where there are none."""
    body = [
        f"<tr><td>{swatch(lane)}</td>{_cell(moment(each.at), each.at)}{_cell(str(each.step), each.step)}"
        f'<td class="text">{escape(each.kind)}</td><td class="text long">{escape(each.text)}</td></tr>'
        for lane, told in lanes
        for each in told[-most:]
    ]
    heads = [_head(title) for title in ("run", "when (UTC)", "step")]
    heads += [_head("kind", "text"), _head("what", "text")]
    return _table("".join(heads), body, "sortable") if body else ""


def decision(made: Decision) -> str:
    """Return the table of a decision's candidates: bytes, seconds predicted and measured, and how far off it was."""
    body = []
    for each in made.candidates:
        off = None if not each.measured or each.predicted is None else each.predicted / each.measured - 1
        shown = (
            ("-" if each.bytes is None else size(each.bytes), each.bytes),
            ("-" if each.predicted is None else f"{1e3 * each.predicted:.4g}", each.predicted),
            ("-" if each.measured is None else f"{1e3 * each.measured:.4g}", each.measured),
            ("-" if off is None else f"{off:+.1%}", off),
        )
        cells = "".join(_cell(*pair) for pair in shown)
        body.append(f"<tr><td>{escape(each.name)}{' <b>chosen</b>' if each.chosen else ''}</td>{cells}</tr>")
    heads = ("way", "bytes a step", "predicted (ms)", "measured (ms)", "predicted against measured")
    return _table("".join(_head(title) for title in heads), body, "sortable")


def swatch(lane: Lane) -> str:
    """Return a run's name beside its colour."""
    return f'<span class="swatch {looks(lane.slot)}"></span>{escape(lane.name)}'


def moment(at: float) -> str:
    """Return a time of the wall clock in words, "-" for one that no calendar has."""
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "-"


def _series(rows: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(row["train/step"], row[key]) for row in rows if key in row]


def _head(title: str, kind: str = "") -> str:
    return f'<th class="{kind}" scope="col"><button type="button">{escape(title)}</button></th>'


def _sorted(line: Line, number: int) -> str:
    return _cell(line.cells[number], line.values[number])


def _cell(shown: str, value: float | None) -> str:
    return f'<td data-v="{"" if value is None else repr(value)}">{escape(shown)}</td>'


def _table(heads: str, rows: Sequence[str], kind: str) -> str:
    table = f'<table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="box" tabindex="0">{table}</div>'
