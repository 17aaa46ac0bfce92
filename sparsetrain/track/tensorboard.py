"""TensorBoard: the same rows as event files in tensorboard/ of the run folder, where the job asks for them."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from sparsetrain.track.background import Background
from sparsetrain.track.notes import Alert, Histogram, Note, Table
from sparsetrain.track.sink import Row

FOLDER = "tensorboard"
SHOWN = 200  # rows of a table


class TensorBoardSink(Background):
    """Writes rows as scalars, histograms, and tables and alerts as text; needs the package tensorboard."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """The option is `log.tensorboard`."""

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None], since: int = 0) -> None:
        super().__init__("TensorBoard", lambda: TensorBoardWriter(folder / FOLDER, since), say)


class TensorBoardWriter:
    """Writes the event files; see Background. `since`: the step after which rows of an earlier attempt are void."""

    def __init__(self, folder: pathlib.Path, since: int = 0) -> None:
        try:
            module: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise RuntimeError("the package tensorboard is missing: pip install sparsetrain[tensorboard]") from error
        self.writer = module.SummaryWriter(str(folder), purge_step=since + 1 if since else None)

    def log(self, row: Row) -> None:
        """Write each number at its step."""
        step = int(row["train/step"])
        for key, value in row.items():
            if key != "train/step":
                self.writer.add_scalar(key, value, step)

    def tell(self, step: int, notes: Sequence[Note]) -> None:
        """Write histograms, and as text tables and alerts."""
        for note in notes:
            if isinstance(note, Alert):
                self.writer.add_text(f"alerts/{note.kind}", note.text, step)
            elif isinstance(note, Histogram):
                self._histogram(note, step)
            else:
                self.writer.add_text(f"tables/{note.name}", markdown(note), step)

    def close(self, status: str) -> None:
        """Write what waits and close the file."""
        self.writer.close()

    def _histogram(self, note: Histogram, step: int) -> None:
        middles = [(low + high) / 2 for low, high in zip(note.edges, note.edges[1:], strict=False)]
        pairs = list(zip(note.counts, middles, strict=True))
        self.writer.add_histogram_raw(
            f"histograms/{note.name}",
            min=note.edges[0],
            max=note.edges[-1],
            num=sum(note.counts),
            sum=sum(count * middle for count, middle in pairs),
            sum_squares=sum(count * middle**2 for count, middle in pairs),
            bucket_limits=list(note.edges[1:]),
            bucket_counts=list(note.counts),
            global_step=step,
        )


def markdown(table: Table) -> str:
    """Return the table as Markdown."""
    lines = [table.columns, ("---",) * len(table.columns), *table.rows[:SHOWN]]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
