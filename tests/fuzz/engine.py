"""The loop: take a case that was interesting, change it, read it, and keep it when it reached something new.

Everything is decided by target and seed: cases, corpus and findings are the same in every run of as many cases.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import time
import traceback
from collections.abc import Hashable

from tests.fuzz.coverage import Lines, path_of, place_of
from tests.fuzz.slot import Slot
from tests.fuzz.target import Target

LARGEST_CORPUS = 4000
ALLOCATION = ("allocate", "MemoryError", "out of memory")


@dataclasses.dataclass
class Tally:
    """What came of the cases so far; `findings` counts cases by where they went wrong."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    corpus: int = 0
    lines: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    findings: dict[str, int] = dataclasses.field(default_factory=dict)


class Fuzzer:
    """A run over one target. `out` is the folder that findings are written to, None: nowhere."""

    def __init__(self, target: Target, seed: int, out: pathlib.Path | None = None, slot: Slot | None = None) -> None:
        self.target, self.out, self.slot = target, out, slot
        self.draw = random.Random(seed)
        self.lines = Lines()
        self.kinds: set[Hashable] = set()
        self.corpus: list[bytes] = []
        self.well: list[bytes] = []  # those of the corpus that were accepted
        self.tally = Tally()
        self.began = time.monotonic()

    def run(self, count: int, seconds: float = float("inf"), first: int = 0) -> Tally:
        """Read cases number `first` to `count` - 1, the valid ones first, or stop when the seconds are over."""
        self.tally.cases = first
        for seed in self.target.seeds():
            self.corpus.append(seed)
            self.well.append(seed)
            if not first:  # a process that goes on behind one that died must not die of the same
                self._read(seed, traced=True)
        while self.tally.cases < count:
            if self.tally.cases % 64 == 0 and time.monotonic() - self.began >= seconds:
                break
            parent = self._parent()
            case = self.target.change(parent, self.corpus, self.draw)
            accepted = self.tally.accepted
            new = self._read(case, traced=self.tally.cases % self.target.traced == 0)
            if new and len(self.corpus) < LARGEST_CORPUS:
                self.corpus.append(case)
                self.well += [case] * (self.tally.accepted > accepted)
        return self.summary()

    def summary(self) -> Tally:
        """Return the tally as it is now."""
        tally = self.tally
        tally.corpus, tally.lines = len(self.corpus), len(self.lines.seen)
        tally.seconds = time.monotonic() - self.began
        return tally

    def _parent(self) -> bytes:
        way = self.draw.random()
        # Much of what is refused is refused at once, and so is what comes near it.
        if way < 0.6:
            return self.well[int(self.draw.random() * len(self.well))]
        where = self.draw.random()
        # What was found last is where new ground is likely.
        return self.corpus[int((1 - where**3 if way < 0.8 else where) * len(self.corpus)) - (way < 0.8)]

    def _read(self, case: bytes, traced: bool) -> bool:
        """Read a case and return whether it reached something new."""
        tally = self.tally
        if self.slot is not None:
            self.slot.put(tally.cases, case)
        tally.cases += 1
        before = len(self.lines.seen)
        began = time.perf_counter()
        try:
            kind = self._call(case, traced)
            tally.accepted += 1
        except self.target.refusals as error:
            if any(word in str(error) for word in ALLOCATION):
                self._found(case, error)
            tally.refused += 1
            kind = self.target.kind_of(error)
        except Exception as error:
            self._found(case, error)
            kind = path_of(error)
        took = time.perf_counter() - began
        tally.slowest_s = max(tally.slowest_s, took)
        new = kind not in self.kinds
        self.kinds.add(kind)
        return new or len(self.lines.seen) > before

    def _call(self, case: bytes, traced: bool) -> Hashable:
        if not traced:
            return self.target.read(case)
        found: list[Hashable] = []
        self.lines.trace(lambda: found.append(self.target.read(case)))
        return found[0]

    def _found(self, case: bytes, error: Exception) -> None:
        where = place_of(error)
        self.tally.findings[where] = self.tally.findings.get(where, 0) + 1
        if self.tally.findings[where] == 1:
            write_finding(self.out, where, case, "".join(traceback.format_exception(error)))


def write_finding(out: pathlib.Path | None, where: str, case: bytes, text: str) -> None:
    """Write a case and what it led to as NAME.case and NAME.txt."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in where)
    (out / f"{name}.case").write_bytes(case)
    (out / f"{name}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
