"""A metrics file in one pass: the figures of the run, and its curves thinned, however long it is."""

from __future__ import annotations

import array
import collections
import concurrent.futures
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from sparsetrain.track.block import Columns, columns
from sparsetrain.track.jsonl import parsed
from sparsetrain.track.thin import KEPT, Array, Thin

METRICS, LAYERS = "metrics.jsonl", "layers.jsonl"
STEP, WALL, BYTES = "train/step", "job/wall_s", "comm/total_bytes"
PARTS = ("forward_backward", "exchange", "optimizer", "data", "checkpoint")  # of a step's time
CURVES = (
    *((x, y) for x in (STEP, WALL, BYTES) for y in ("train/loss", "eval/loss")),
    (STEP, "comm/gradient_bytes"),
    (STEP, "comm/mask_bytes"),
    (STEP, "comm/dense_bytes_per_step"),
    (STEP, "mask/sparsity"),
    (STEP, "mask/churn"),
    (STEP, "grad/density"),
    (STEP, "grad/residual_norm"),
    (STEP, "job/world_size"),
    (STEP, "time/step_s"),
)
WHOLE = (STEP, "comm/gradient_bytes", "time/step_s", "time/exchange_s", "time/forward_backward_s")
STEADY = WHOLE[2:]
TIMES = tuple(f"time/{part}_s" for part in PARTS)
KEYS = tuple(dict.fromkeys((*WHOLE, *TIMES, *(key for curve in CURVES for key in curve))))
BLOCK = 2**24  # bytes that are read at once
AT_ONCE = min(4, os.cpu_count() or 1)  # blocks
Points = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digest:
    """`figures`: see compare. `curves`: points of y by (x, y). `parts`: mean seconds of a step by part. `rows` were
    read, `wrong` lines were none."""

    rows: int = 0
    wrong: int = 0
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curves: Mapping[tuple[str, str], Points] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def curve(self, x: str, y: str) -> Points:
        """Return the points of a curve, none where the run has not recorded it."""
        return self.curves.get((x, y), [])


def digest(path: pathlib.Path, kept: int = KEPT) -> Digest:
    """Return what the metrics file holds; an empty digest where there is none, or it cannot be read."""
    reading = _Reading(kept)
    try:
        if path.is_file():  # a pipe would keep us waiting
            with path.open("rb") as file:
                reading.read(file)
    except OSError:
        pass
    return reading.digest()


class _Reading:
    """What is known after so many rows."""

    def __init__(self, kept: int) -> None:
        self.rows = self.wrong = 0
        self.thin = {curve: Thin(kept) for curve in CURVES}
        self.whole = {key: array.array("d") for key in WHOLE}
        self.sums = {key: [0.0, 0] for key in TIMES}
        self.latest: dict[tuple[bytes, ...], tuple[int, bytes]] = {}  # the last row with each set of keys

    def read(self, file: BinaryIO) -> None:
        """Read all lines, also a last one without an end."""
        found: collections.deque[concurrent.futures.Future[Columns]] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:  # most of the work is numpy's, without the lock
            for block in _blocks(file):
                found.append(pool.submit(columns, block, KEYS))
                if len(found) > AT_ONCE:
                    self._take(found.popleft().result())
            while found:
                self._take(found.popleft().result())

    def _take(self, found: Columns) -> None:
        for (x, y), thin in self.thin.items():
            thin.add(found.values[x], found.values[y])
        for key, column in self.whole.items():
            column.frombytes(found.values[key].tobytes())
        for key, total in self.sums.items():
            good = found.values[key][np.isfinite(found.values[key])]
            total[0] += float(good.sum())
            total[1] += len(good)
        for shape, (row, line) in found.latest.items():
            self.latest[shape] = (self.rows + row, line)
        self.rows += found.rows
        self.wrong += found.wrong

    def digest(self) -> Digest:
        """Return what is known."""
        last: dict[str, float] = {}
        for _, line in sorted(self.latest.values()):
            last |= parsed(line) or {}
        means = {key: total / count for key, (total, count) in self.sums.items() if count}
        return Digest(
            rows=self.rows,
            wrong=self.wrong,
            figures=_figures(last, {key: np.array(column) for key, column in self.whole.items()}),
            curves={curve: thin.points() for curve, thin in self.thin.items() if thin.count},
            parts={key.removeprefix("time/").removesuffix("_s"): mean for key, mean in means.items()},
        )


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Return all of a file in blocks of whole lines, also a last one without an end."""
    rest = b""
    while data := file.read(BLOCK):
        whole, end, data = data.rpartition(b"\n")
        if end:
            yield rest + whole + end
            rest = b""
        rest += data
    if rest:
        yield rest + b"\n"


def _figures(last: Mapping[str, float], whole: Mapping[str, Array]) -> dict[str, float]:
    """Return the last value of everything, means over the run, and medians over its second half as `_steady`."""
    if not last:
        return {}
    at = whole[STEP]
    steps = max(1, last[STEP])
    found = {key: float(value) for key, value in last.items()}
    for key in ("comm/gradient_bytes", "comm/mask_bytes", "comm/total_bytes"):
        found[f"{key}_mean"] = last.get(key, 0.0) / steps
    # Bytes leave in bursts with local steps: the mean over the second half, from the cumulative counter.
    early = np.flatnonzero(at <= steps / 2)
    before = middle = 0.0
    if len(early):
        row = early[at[early].argmax()]
        before, middle = float(np.nan_to_num(whole["comm/gradient_bytes"][row])), float(at[row])
    found["comm/gradient_bytes_steady"] = (last.get("comm/gradient_bytes", 0.0) - before) / max(1, steps - middle)
    for key in STEADY:
        values = whole[key][at > steps / 2]
        if len(values := values[np.isfinite(values)]):
            found[f"{key}_steady"] = float(np.median(values))
    return {key: value for key, value in found.items() if math.isfinite(value)}


def layers(path: pathlib.Path) -> list[dict[str, float]]:
    """Return the rows of layers.jsonl, at most some hundred of them, evenly spread, the last among them."""
    try:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            count = sum(1 for _ in file)
        every = -(-count // 100) or 1
        with path.open("rb") as file:
            kept = [line for number, line in enumerate(file) if (count - 1 - number) % every == 0]
    except OSError:
        return []
    return [row for line in kept if (row := parsed(line)) is not None]
