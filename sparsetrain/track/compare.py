"""What a run saved and what it cost, beside the others: one column a run, the first is the reference."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

from sparsetrain.track.console import size
from sparsetrain.track.jsonl import read

RELATIVE = ("against the first", "share of the first", "compression")  # rows that say nothing of a run by itself


def figures(folder: pathlib.Path) -> dict[str, float]:
    """Return the figures of a run folder by metric name; `steady` ones are medians over the second half of the run.

    Bytes are those that rank 0 put on the wire, counted from buffers.
    """
    rows = read(folder / "metrics.jsonl")
    if not rows:
        return {}
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    steps = max(1, last["train/step"])
    half = [row for row in rows if row["train/step"] > steps / 2]
    found = {key: float(value) for key, value in last.items() if isinstance(value, int | float)}
    for key in ("comm/gradient_bytes", "comm/mask_bytes", "comm/total_bytes"):
        found[f"{key}_mean"] = last.get(key, 0.0) / steps
    # Bytes leave in bursts with local steps: the mean over the second half, from the cumulative counter.
    middle = max((row for row in rows if row["train/step"] <= steps / 2), key=lambda r: r["train/step"], default=None)
    before, at = (middle.get("comm/gradient_bytes", 0.0), middle["train/step"]) if middle else (0.0, 0)
    found["comm/gradient_bytes_steady"] = (last.get("comm/gradient_bytes", 0.0) - before) / max(1, steps - at)
    for key in ("time/step_s", "time/exchange_s", "time/forward_backward_s"):
        values = [row[key] for row in half if key in row]
        if values:
            found[f"{key}_steady"] = statistics.median(values)
    return found


def compare(folders: list[pathlib.Path]) -> str:
    """Return the table of runs as text."""
    runs = [figures(folder) for folder in folders]
    lines = [["", *(folder.name for folder in folders)]]
    for title, show in _rows(runs[0]):
        cells = [show(run) if run else "-" for run in runs]
        relative = title.strip() in RELATIVE
        if any(cell != "-" for cell in cells) and not (relative and len(runs) == 1):
            lines.append([title, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def as_json(folders: list[pathlib.Path]) -> str:
    """Return the figures of all runs as one JSON object by run name."""
    return json.dumps({folder.name: figures(folder) for folder in folders}, indent=1)


def _rows(reference: dict[str, float]) -> list[tuple[str, Callable[[dict[str, float]], str]]]:
    def plain(key: str, form: str, scale: float = 1.0) -> Callable[[dict[str, float]], str]:
        return lambda run: format(run[key] * scale, form) if key in run else "-"

    def sent(key: str) -> Callable[[dict[str, float]], str]:
        return lambda run: size(run[key]) if key in run else "-"

    def times(key: str) -> Callable[[dict[str, float]], str]:
        def ratio(run: dict[str, float]) -> str:
            if not run.get(key) or not reference.get(key):
                return "-"
            return f"{reference[key] / run[key]:.1f} x"

        return ratio

    def gap(run: dict[str, float]) -> str:
        if "eval/loss" not in run or not reference.get("eval/loss"):
            return "-"
        return f"{run['eval/loss'] / reference['eval/loss'] - 1:+.2%}"

    def sparsity(run: dict[str, float]) -> str:
        return f"{run['mask/sparsity']:.2%}" if "mask/sparsity" in run else "0 (dense)"

    def share(run: dict[str, float]) -> str:
        dense = reference.get("comm/gradient_bytes_steady")
        return f"{run['comm/gradient_bytes_steady'] / dense:.3%}" if dense else "-"

    return [
        ("steps", plain("train/step", ".0f")),
        ("validation loss (nats)", plain("eval/loss", ".4f")),
        ("  bits per byte", plain("eval/bits_per_byte", ".4f")),
        ("  accuracy", plain("eval/accuracy", ".2%")),
        ("  against the first", gap),
        ("sparsity of masked weights", sparsity),
        ("gradient bytes sent a step, after warm-up", sent("comm/gradient_bytes_steady")),
        ("  share of the first", share),
        ("  compression", times("comm/gradient_bytes_steady")),
        ("gradient bytes sent a step, whole run", sent("comm/gradient_bytes_mean")),
        ("mask bytes sent a step, whole run", sent("comm/mask_bytes_mean")),
        ("all bytes sent a step, whole run", sent("comm/total_bytes_mean")),
        ("  compression", times("comm/total_bytes_mean")),
        ("exchange time a step (ms)", plain("time/exchange_s_steady", ".1f", 1e3)),
        ("step time (ms)", plain("time/step_s_steady", ".1f", 1e3)),
        ("training time (s)", plain("job/wall_s", ".1f")),
    ]
