"""This machine alone: Ray starts for the run and ends with it."""

from __future__ import annotations

import dataclasses

from sparsetrain.launch.launchers.request import Request
from sparsetrain.launch.plan import LaunchPlan, ray_plan


class Local:
    """Workers on this machine, by a Ray of the run's own; lost ones are replaced."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Nothing to choose."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be started. Raises JobError for a mistake in the job."""
        return ray_plan(request.job, request.env)
