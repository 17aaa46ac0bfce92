"""Progress on the screen: a bar on a terminal, a line per row of metrics elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, TextIO

from sparsetrain.config.job import Job
from sparsetrain.launch.signals import Stop
from sparsetrain.launch.supervisor import Progress
from sparsetrain.track.console import format_row


@contextlib.contextmanager
def progress(job: Job, stream: TextIO, stop: Stop) -> Generator[Progress]:
    """Yield where lines and rows of the run go: to `stream`, at once."""
    with _on_terminal(job, stream, stop) if stream.isatty() else _as_lines(stream, stop) as shown:
        yield shown


@contextlib.contextmanager
def silent(job: Job, stream: TextIO, stop: Stop) -> Generator[Progress]:
    """Yield a progress that shows nothing; the run can be stopped all the same."""
    yield Progress(line=lambda text: None, row=lambda row: None, check=stop.check)


@contextlib.contextmanager
def _as_lines(stream: TextIO, stop: Stop) -> Generator[Progress]:
    def line(text: str) -> None:
        print(text, file=stream, flush=True)

    yield Progress(line=line, row=lambda row: line(format_row(row)), check=stop.check)


@contextlib.contextmanager
def _on_terminal(job: Job, stream: TextIO, stop: Stop) -> Generator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(job.name, total=job.train.steps, last="starting")

        def row(row: dict[str, Any]) -> None:
            text = format_row(row)
            bar.update(task, completed=row["train/step"], last=text, refresh=True)
            if "eval/loss" in row:  # what one wants to scroll back to
                bar.console.print(text)

        yield Progress(line=bar.console.print, row=row, check=stop.check)
