"""This machine alone: Ray starts for the run and ends with it."""

from __future__ import annotations

from sparsetrain.launch.launchers.ray import Ray


class Local(Ray):
    """Workers on this machine, by a Ray of the run's own; lost ones are replaced; `cluster.address` is refused."""
