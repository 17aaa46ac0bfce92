"""Fuzz one of the parsers from the repository's root: `python -m tests.fuzz payload --count 100000 --seed 1`.

Exits with 1 when anything was found; each finding is a .case file, which `--replay` reads again, and a .txt beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import resource
import sys
import threading

from tests.fuzz import sanitized
from tests.fuzz.engine import Fuzzer
from tests.fuzz.slot import Slot
from tests.fuzz.target import Target
from tests.fuzz.watch import report, watched

TARGETS = {
    "payload": "payload:Payloads",
    "codes": "codes:Codes",
    "checkpoint": "checkpoint:Checkpoints",
    "job_file": "job_file:JobFiles",
    "handover": "handover:Handovers",
    "json": "json_files:JsonFiles",
    "export": "export_file:ExportFiles",
}
ADDRESSES = 3 << 30  # bytes beyond those at the start: what a length in a file asks for must not be taken
NOTE = 10.0  # seconds between two notes of the tally


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--count", type=int, default=10_000, help="cases to read")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds that one case may take")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("fuzz-findings"), help="folder of findings")
    parser.add_argument("--sanitize", action="store_true", help="kernels with address and undefined sanitizers")
    parser.add_argument("--portable", action="store_true", help="with --sanitize: kernels without wide vectors")
    parser.add_argument("--replay", type=pathlib.Path, help="read one case and show what it leads to")
    parser.add_argument("--inside", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.replay:
        print(target_of(given.target).read(given.replay.read_bytes()))
        return 0
    if given.inside:
        return _inside(given)
    env = sanitized.environment(given.portable) if given.sanitize else dict(os.environ)
    fixed = [given.target, "--count", str(given.count), "--seed", str(given.seed), "--out", str(given.out)]
    fixed += ["--sanitize"] if given.sanitize else []
    tally = watched(fixed, given.count, given.seconds, given.limit, given.out, env)
    print(json.dumps(dataclasses.asdict(tally), indent=1))
    return 1 if tally.findings else 0


def target_of(name: str) -> Target:
    """Return a target by its name."""
    module, _, cls = TARGETS[name].partition(":")
    return getattr(importlib.import_module(f"tests.fuzz.{module}"), cls)()


def _inside(given: argparse.Namespace) -> int:
    """Read cases in this process; the one that started it looks at the slot and the tally."""
    faulthandler.enable()
    fuzzer = Fuzzer(target_of(given.target), given.seed + given.first, given.out, Slot(given.inside / "slot"))
    if not given.sanitize:  # a sanitizer reserves terabytes of addresses
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, -1))
    stop = threading.Event()
    path = given.inside / "tally.json"

    def note() -> None:
        while not stop.wait(NOTE):
            _write(path, report(fuzzer.summary()))

    noting = threading.Thread(target=note, daemon=True)
    noting.start()
    tally = fuzzer.run(given.count, given.seconds, given.first)
    stop.set()
    noting.join()
    _write(path, report(tally))
    return 0


def _write(path: pathlib.Path, text: str) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
