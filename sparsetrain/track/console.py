"""One readable line per row of metrics."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any


class RowSink:
    """Hands each row to whoever shows it."""

    def __init__(self, show: Callable[[dict[str, float]], None]) -> None:
        self.show = show

    def log(self, row: dict[str, float]) -> None:
        """Show one row."""
        self.show(row)

    def close(self, status: str) -> None:
        """Do nothing: what shows the rows outlives the run."""


def format_row(row: dict[str, Any]) -> str:
    """Return the line for a row: step, losses, bytes, sparsity, time."""
    parts = [f"step {int(row['train/step']):>5}"]
    if "train/loss" in row:
        parts.append(f"loss {row['train/loss']:.4f}")
    if "eval/loss" in row:
        bits = f" ({row['eval/bits_per_byte']:.3f} bits/byte)" if "eval/bits_per_byte" in row else ""
        accuracy = f" ({row['eval/accuracy']:.2%} right)" if "eval/accuracy" in row else ""
        parts.append(f"validation {row['eval/loss']:.4f}{bits}{accuracy}")
    if "comm/gradient_bytes_per_step" in row:
        parts.append(f"gradients {size(row['comm/gradient_bytes_per_step'])}/step")
    if row.get("comm/weight_bytes_per_step"):
        parts.append(f"and {size(row['comm/weight_bytes_per_step'])} of weights")
    if "mask/sparsity" in row:
        parts.append(f"weights {row['mask/sparsity']:.1%} sparse")
    if "mask/grown" in row:
        parts.append(f"mask epoch {int(row['mask/epoch'])}: {int(row['mask/grown'])} grown")
    if row.get("train/skipped"):
        parts.append(f"{int(row['train/skipped'])} steps skipped (not finite)")
    if "time/step_s" in row:
        parts.append(f"{row['time/step_s'] * 1000:.0f} ms/step")
    return "  ".join(parts)


def size(count: float) -> str:
    """Return a number of bytes with its unit, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def clean(text: str) -> str:
    """Return a text of one line that does nothing to a terminal: controls, marks of direction and halves of characters
    are shown as a dot, white space as a blank."""
    return "".join(
        " " if each.isspace() else "\N{MIDDLE DOT}" if unicodedata.category(each).startswith("C") else each
        for each in text
    )
