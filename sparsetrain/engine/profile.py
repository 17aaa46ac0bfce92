"""A window of torch's profiler on rank 0: profile/ of the run folder gets a trace for Perfetto and a table."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import torch

from sparsetrain.config.job import Profile

FOLDER = "profile"
ROWS = 40  # operators in the table


class Profiler:
    """Records the steps after `begin`, as many as the job says. What goes wrong is said and ends the profile alone."""

    def __init__(self, settings: Profile, folder: pathlib.Path, log: Callable[[str], None]) -> None:
        self.settings = settings
        self.folder = folder / FOLDER
        self.log = log
        self.profile: Any = None
        self.began = -1
        self.done = settings.steps == 0

    def at(self, step: int) -> None:
        """Begin or end, now that so many steps are finished."""
        if self.done:
            return
        try:
            if self.profile is None and step >= self.settings.begin:
                self._start(step)
            elif self.profile is not None and step >= self.began + self.settings.steps:
                self._stop(step)
        except Exception as error:
            self._fail(error)

    def close(self, step: int) -> None:
        """End a profile that is under way."""
        if self.profile is not None and not self.done:
            try:
                self._stop(step)
            except Exception as error:
                self._fail(error)

    def _start(self, step: int) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profile = torch.profiler.profile(activities=kinds, record_shapes=True)
        self.began = step
        self.profile.start()

    def _stop(self, step: int) -> None:
        profile, self.done = self.profile, True
        self.profile = None
        profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank00000.steps{self.began + 1}-{step}"
        profile.export_chrome_trace(str(self.folder / f"{name}.json"))
        table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)
        (self.folder / f"{name}.txt").write_text(table, encoding="utf-8")
        self.log(f"profile: steps {self.began + 1} to {step} in {self.folder / name}.json")

    def _fail(self, error: Exception) -> None:
        self.done, self.profile = True, None
        self.log(f"profile: there is none: {type(error).__name__}: {error}")
