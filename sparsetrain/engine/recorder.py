"""What is written down of a run while it goes on: rows, tables, alerts, decisions, spans, a profile."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable

import torch

from sparsetrain.config.check import advice
from sparsetrain.engine.choices import Choices, named
from sparsetrain.engine.profile import Profiler
from sparsetrain.engine.rows import effective, figures, sinks
from sparsetrain.engine.state import RunState
from sparsetrain.engine.tables import gather_ranks, notes
from sparsetrain.engine.window import Window
from sparsetrain.masks.report import Report
from sparsetrain.track.alerts import Alerts
from sparsetrain.track.console import format_row
from sparsetrain.track.notes import Alert
from sparsetrain.track.sink import Row, Tracker
from sparsetrain.track.spans import NoSpans, Spans


class Recorder:
    """One rank's account of its run; sinks, alerts, decisions and the profile are rank 0's.

    `window` holds what has happened since the last row. `tracker` and `alerts` may be taken over from the recorder that
    this process had in a group before. `last` is the last row, on every rank where `keeps`: whoever writes rows may
    be gone before this one is written.
    """

    def __init__(
        self,
        state: RunState,
        folder: pathlib.Path,
        log: Callable[[str], None],
        show: Callable[[Row], None] | None = None,
        keeps: bool = False,
    ) -> None:
        self.state = state
        self.folder = folder
        self.log = log
        self.show = show or (lambda row: log(format_row(row)))
        self.rank = state.world.rank
        self.tracker = Tracker({})
        self.alerts = Alerts(folder, log)
        self.choices: Choices | None = None
        settings = state.job.log
        self.spans = Spans(folder, self.rank, state.world.node) if settings.trace else NoSpans()
        self.profiler = Profiler(settings.profile, folder, log) if self.rank == 0 and settings.profile.steps else None
        self.shows = settings.wandb.mode != "disabled" or settings.tensorboard
        self.mark = self.spans.mark if settings.trace else None
        state.exchange.mark = self.mark
        connections = getattr(state.world.transport, "connections", None)
        if connections is not None:
            connections.mark = self.mark
        self.window = Window(state.world.transport.meter, mark=self.mark)
        self.keeps = keeps or self.rank == 0
        self.last: Row = {}

    def open(self, recorded: int) -> None:
        """Open the sinks, which keep rows up to step `recorded`, and say what the run is made of."""
        state, exchange = self.state, self.state.exchange
        if self.rank == 0 and not self.tracker.sinks:
            self.tracker = Tracker(sinks(state, recorded, self.folder, self.show, self.log), self.log)
        if self.rank == 0 and recorded:
            self._alert(Alert("restart", f"{state.world.size} workers go on after step {recorded}"), recorded)
        if self.rank == 0 and self.choices is None:
            self.choices = Choices(self.folder / "regimes.json", exchange.step)
        self.window = Window(state.world.transport.meter, exchange.seconds, self.mark)
        if hasattr(state.data, "describe"):
            self.log(f"data: {', '.join(f'{key} {value}' for key, value in state.data.describe().items())}")
        if state.masks is not None:
            self.log(f"masks: {state.masks.describe()}")
        for line in advice(state.job):
            self.log(f"note: {line}")
        if exchange.planner is not None and exchange.planner.begun:
            self.log(f"exchange: auto goes on with {named(exchange.choice())}")

    def stepped(self) -> None:
        """Follow a step that has ended, or the beginning."""
        planner = self.state.exchange.planner
        if self.choices is not None and planner is not None:
            self.choices.tell(planner.decisions, self.log)
        if self.profiler is not None:
            self.profiler.at(self.state.step)

    def record(self, evaluation: Row, report: Report | None) -> float:
        """Send one row of metrics, and at an evaluation tables, to the tracker; return the loss, which is the mean over
        ranks. Collective."""
        state, transport = self.state, self.state.world.transport
        local = torch.tensor([self.window.mean_loss(), self.window.seconds()], dtype=torch.float64)
        total = transport.rank_ordered_sum(local.to(transport.device), "control") / state.world.size
        loss = float(total[0])
        self.spans.met(state.step)
        ranks = gather_ranks(state, self.window) if evaluation and self.shows else None
        if self.rank == 0 and evaluation:
            with self.spans.span("evaluation"):
                evaluation = {**evaluation, **effective(state)}
        with self.spans.span("record"):
            if self.keeps:
                row = figures(state, self.window, loss, evaluation, report)
                self.last = {key: value for key, value in row.items() if not math.isnan(value)}
            if self.rank == 0:
                self.tracker.log(self.last)
                tables = [ranks, *notes(state)] if ranks is not None else []
                self.tracker.tell(state.step, [*tables, *self.alerts.look(self.last)])
        self.spans.flush()
        self.window = Window(transport.meter, state.exchange.seconds, self.mark)
        return loss

    def failed(self, error: BaseException) -> None:
        """Tell what has ended the run, and close everything."""
        if self.rank == 0:
            self.tracker.tell(self.state.step, self.alerts.ended(error, self.state.step))
        self.close("failed")

    def close(self, status: str) -> None:
        """End the sinks, the trace and the profile."""
        if self.profiler is not None:
            self.profiler.close(self.state.step)
        self.spans.close()
        self.tracker.close(status)

    def take_over(self, former: Recorder) -> None:
        """Go on with the sinks of the group before, where this rank and that one are both rank 0; else end those."""
        former.spans.close()
        self.last = former.last
        if former.rank == 0 and self.rank == 0:
            self.tracker, self.alerts = former.tracker, former.alerts
        elif former.rank == 0:
            former.tracker.close("finished")

    def _alert(self, alert: Alert, step: int) -> None:
        if self.alerts.tell(alert, step, aloud=False):
            self.tracker.tell(step, [alert])
