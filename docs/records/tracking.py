"""What tracking costs the training thread of each rank: `python docs/records/tracking.py RUN...` for runs with
log.trace=true. The share of rows comes from the spans `record`, that of the trace from the number of its spans and what
one costs, measured here."""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time

from sparsetrain.track.spans import Spans
from sparsetrain.track.trace import merge

MARKS = 200_000
FLUSHED = 200  # spans


def costs() -> tuple[float, float]:
    """Return processor seconds of one mark, and of writing one span."""
    with tempfile.TemporaryDirectory() as folder:
        spans = Spans(pathlib.Path(folder), 0)
        spans.flush()
        marking = writing = 0.0
        for _ in range(MARKS // FLUSHED):
            began = time.thread_time()
            for _ in range(FLUSHED):
                spans.mark("forward_backward", 1.0, 2.0)
            middle = time.thread_time()
            spans.flush()
            marking += middle - began
            writing += time.thread_time() - middle
    return marking / MARKS, writing / MARKS


def main() -> None:
    """Print a row for each rank of each run."""
    mark, write = costs()
    print(f"one span: {mark * 1e6:.2f} us to note, {write * 1e6:.2f} us to write\n")
    print("| run | rank | steps | step, ms | spans a step | of them training thread | rows | trace |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in sys.argv[1:]:
        folder = pathlib.Path(name)
        found = [event for event in merge(folder).tree["traceEvents"] if event["ph"] == "X"]
        for rank in sorted({event["pid"] for event in found}):
            own = [event for event in found if event["pid"] == rank]
            (main_thread,) = {event["tid"] for event in own if event["name"] == "record"}
            here = [event for event in own if event["tid"] == main_thread]
            seconds = (max(e["ts"] + e["dur"] for e in here) - min(e["ts"] for e in here)) / 1e6
            steps = sum(event["name"] == "update" for event in here)
            rows = sum(event["dur"] for event in here if event["name"] == "record") / 1e6
            trace = len(here) * mark + len(own) * write
            print(
                f"| {folder.name} | {rank} | {steps} | {seconds / steps * 1e3:.1f} | {len(own) / steps:.1f} | "
                f"{len(here) / steps:.1f} | {rows / seconds:.2%} | {trace / seconds:.3%} |"
            )


if __name__ == "__main__":
    main()
