"""The small JSON files of a run folder and of the cache: a kept calibration, run.json, regimes.json, metrics.jsonl.

A case is a byte that names the reader, then the content of the file. They are read where damage must not stop a run, so
nothing may be refused: each reader has a value for what cannot be read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from sparsetrain.collective.world import World
from sparsetrain.engine.choices import Choices
from sparsetrain.gradient.calibration import FASTEST
from sparsetrain.gradient.kept import Kept
from sparsetrain.track.jsonl import JsonlSink, read
from sparsetrain.worker import record
from sparsetrain.worker.existing import status
from tests.fuzz.mutations import changed, changed_value
from tests.fuzz.target import Target, scratch

STAGE = {"settings": "topk", "share": 0.5, "select_s": 1e-9, "merge_s": 1e-9}
NETWORK = {"version": 1, "latency_s": 1e-4, "reduce_rate": 1e8, "gather_rate": 1e8}
ROW = {"train/step": 3, "train/loss": 1.5, "comm/gradient_bytes": 100}


class JsonFiles(Target):
    refusals = ()
    traced = 64

    def __init__(self) -> None:
        self.folder = scratch()
        self.kept = Kept(self.folder, World())
        self.readers: list[Callable[[bytes], Hashable]] = [self._kept, self._run, self._choices, self._metrics]

    def seeds(self) -> list[bytes]:
        values: list[Any] = [
            {**NETWORK, "stages": [STAGE, STAGE]},
            {"name": "x", "status": "running", "attempts": 2, "began": 1.5, "pid": 7},
            {"decisions": [{"exchange": 1, "regimes": ["dense"]}, {"exchange": 9}]},
        ]
        files = [json.dumps(value).encode() for value in values]
        files.append("".join(json.dumps({**ROW, "train/step": step}) + "\n" for step in range(4)).encode())
        return [bytes([number]) + data for number, data in enumerate(files)]

    def read(self, case: bytes) -> Hashable:
        number = (case[0] if case else 0) % len(self.readers)
        return number, self.readers[number](case[1:])

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        if draw.random() < 0.4:
            return changed(case, corpus, draw)
        if draw.random() < 0.02:
            return case[:1] + draw.choice((b"[", b'{"a":')) * draw.choice((10, 1000, 100_000))
        lines = []
        for line in case[1:].splitlines():
            try:
                lines.append(json.dumps(changed_value(json.loads(line), draw)).encode())
            except (ValueError, RecursionError):
                lines.append(line)
        digits = draw.choice((b"1e999", b"9" * 5000, b"-1", b"NaN", b'"\\ud800"'))
        text = b"\n".join(lines)
        return case[:1] + (text.replace(draw.choice((b"1", b"2", b"0.5")), digits, 1) if draw.random() < 0.2 else text)

    def _kept(self, data: bytes) -> Hashable:
        self.kept.path.write_bytes(data)
        found = self.kept.read()
        if found is None:
            return None
        network, known = found.network, found.known
        assert 0 <= network.latency_s <= 60 and 0 < network.reduce_rate <= FASTEST, "a network that cannot be"
        assert all(0 <= share <= 1 and costs.select_s >= 0 for _, share, costs in known), "a stage that cannot be"
        return len(known)

    def _run(self, data: bytes) -> Hashable:
        (self.folder / "run.json").write_bytes(data)
        found = status(self.folder)
        record.end(self.folder, "finished", None, {"eval/loss": 1.0})
        after = status(self.folder)
        assert after["status"] == "finished" and found.keys() <= after.keys(), "the end of the run is not written"
        return tuple(type(value).__name__ for value in found.values())

    def _choices(self, data: bytes) -> Hashable:
        path = self.folder / "regimes.json"
        path.write_bytes(data)
        Choices(path, 5)
        return len(data).bit_length()

    def _metrics(self, data: bytes) -> Hashable:
        path = self.folder / "metrics.jsonl"
        path.write_bytes(data)
        rows = read(path)
        JsonlSink(JsonlSink.Config(), path, 2).close("finished")
        assert read(path) == [row for row in rows if row["train/step"] <= 2], "other rows are kept"
        return len(rows)
