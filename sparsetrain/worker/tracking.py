"""Rank 0's sinks: metrics.jsonl, W&B, and whoever looks on."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator

from sparsetrain.config.job import Job
from sparsetrain.config.load import to_tree
from sparsetrain.engine import checkpoint
from sparsetrain.track.jsonl import JsonlSink
from sparsetrain.track.sink import Sink, Tracker
from sparsetrain.track.wandb import WandbSink
from sparsetrain.worker.environment import Place

Row = dict[str, float]


class Live:
    """A sink that hands each row to a function."""

    def __init__(self, show: Callable[[Row], None]) -> None:
        self.show = show

    def log(self, row: Row) -> None:
        """Hand over one row."""
        self.show(row)

    def close(self, status: str) -> None:
        """Nothing is held."""


@contextlib.contextmanager
def tracking(
    job: Job, place: Place, folder: pathlib.Path, show: Callable[[Row], None] | None
) -> Iterator[Tracker | None]:
    """Hold rank 0's tracker, closed with the run's status at the end; None on all other ranks."""
    if place.rank:
        yield None
        return
    step = resume_step(folder) if job.checkpoint.resume else 0
    sinks: dict[str, Callable[[], Sink]] = {
        "metrics.jsonl": lambda: JsonlSink(JsonlSink.Config(), folder / "metrics.jsonl", step),
    }
    if show is not None:
        sinks["console"] = lambda: Live(show)
    if job.log.wandb.mode != "disabled":
        sinks["W&B"] = lambda: WandbSink(job.log.wandb, folder, job.name, to_tree(job))
    tracker = Tracker(sinks)
    status = "failed"
    try:
        yield tracker
        status = "finished"
    finally:
        tracker.close(status)


def resume_step(folder: pathlib.Path) -> int:
    """Return the step of the newest complete checkpoint, 0 without one."""
    found = checkpoint.complete(folder / "checkpoints")
    return int(found[-1].name.rpartition("_")[2]) if found else 0
