"""What a run saved and what it cost, beside the others: one column a run, the first is the reference."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from sparsetrain.track.console import size
from sparsetrain.track.digest import METRICS, digest

Run = Mapping[str, float]
RELATIVE = ("against the first", "share of the first", "compression")  # rows that say nothing of a run by itself


def figures(folder: pathlib.Path) -> Run:
    """Return the figures of a run folder by metric name; `steady` ones are medians over the second half of the run.

    Bytes are those that rank 0 put on the wire, counted from buffers.
    """
    return digest(folder / METRICS).figures


def compare(folders: list[pathlib.Path]) -> str:
    """Return the table of runs as text."""
    return as_text([folder.name for folder in folders], [figures(folder) for folder in folders])


def as_text(names: Sequence[str], runs: Sequence[Run]) -> str:
    """Return the table of named figures as text."""
    lines = [["", *names], *([line.title, *line.cells] for line in lines_of(runs))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: a cell a run, "-" where it has no such figure, and the numbers to sort by."""

    title: str
    cells: tuple[str, ...]
    values: tuple[float | None, ...]


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Return the lines that say something of these runs; the first run is the reference."""
    found = []
    for title, key, show in _rows(runs[0]):
        cells = tuple(show(run) if run else "-" for run in runs)
        relative = title.strip() in RELATIVE
        if any(cell != "-" for cell in cells) and not (relative and len(runs) == 1):
            found.append(Line(title=title, cells=cells, values=tuple(run.get(key) for run in runs)))
    return found


def as_json(folders: list[pathlib.Path]) -> str:
    """Return the figures of all runs as one JSON object by run name."""
    return json.dumps({folder.name: dict(figures(folder)) for folder in folders}, indent=1)


def _rows(reference: Run) -> list[tuple[str, str, Callable[[Run], str]]]:
    """Return the title of each line, the figure that it is about, and how it is shown."""

    def plain(key: str, form: str, scale: float = 1.0) -> Callable[[Run], str]:
        return lambda run: format(run[key] * scale, form) if key in run else "-"

    def sent(key: str) -> Callable[[Run], str]:
        return lambda run: size(run[key]) if key in run else "-"

    def times(key: str) -> Callable[[Run], str]:
        def ratio(run: Run) -> str:
            if not run.get(key) or not reference.get(key):
                return "-"
            return f"{reference[key] / run[key]:.1f} x"

        return ratio

    def gap(run: Run) -> str:
        if "eval/loss" not in run or not reference.get("eval/loss"):
            return "-"
        return f"{run['eval/loss'] / reference['eval/loss'] - 1:+.2%}"

    def sparsity(run: Run) -> str:
        return f"{run['mask/sparsity']:.2%}" if "mask/sparsity" in run else "0 (dense)"

    def share(run: Run) -> str:
        sent, dense = (each.get("comm/gradient_bytes_steady") for each in (run, reference))
        return f"{sent / dense:.3%}" if dense and sent is not None else "-"

    return [
        ("steps", "train/step", plain("train/step", ".0f")),
        ("validation loss (nats)", "eval/loss", plain("eval/loss", ".4f")),
        ("  bits per byte", "eval/bits_per_byte", plain("eval/bits_per_byte", ".4f")),
        ("  accuracy", "eval/accuracy", plain("eval/accuracy", ".2%")),
        ("  against the first", "eval/loss", gap),
        ("sparsity of masked weights", "mask/sparsity", sparsity),
        ("gradient bytes sent a step, after warm-up", "comm/gradient_bytes_steady", sent("comm/gradient_bytes_steady")),
        ("  share of the first", "comm/gradient_bytes_steady", share),
        ("  compression", "comm/gradient_bytes_steady", times("comm/gradient_bytes_steady")),
        ("gradient bytes sent a step, whole run", "comm/gradient_bytes_mean", sent("comm/gradient_bytes_mean")),
        ("mask bytes sent a step, whole run", "comm/mask_bytes_mean", sent("comm/mask_bytes_mean")),
        ("all bytes sent a step, whole run", "comm/total_bytes_mean", sent("comm/total_bytes_mean")),
        ("  compression", "comm/total_bytes_mean", times("comm/total_bytes_mean")),
        ("exchange time a step (ms, median)", "time/exchange_s_steady", plain("time/exchange_s_steady", ".1f", 1e3)),
        ("step time (ms, median)", "time/step_s_steady", plain("time/step_s_steady", ".1f", 1e3)),
        ("training time (s)", "job/wall_s", plain("job/wall_s", ".1f")),
    ]
