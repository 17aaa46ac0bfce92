"""Progress on the screen."""

from __future__ import annotations

from typing import TextIO

from sparsetrain.launch.ray_driver import Progress
from sparsetrain.launch.signals import Stop
from sparsetrain.track.console import format_row


def progress(stream: TextIO, stop: Stop) -> Progress:
    """Return where lines and rows go: both to `stream`, at once."""

    def line(text: str) -> None:
        print(text, file=stream, flush=True)

    return Progress(line=line, row=lambda row: line(format_row(row)), check=stop.check)
