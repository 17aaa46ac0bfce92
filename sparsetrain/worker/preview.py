"""What the workers of a job would follow, for those who start them."""

from __future__ import annotations

from sparsetrain.config.job import Job


def preview(job: Job) -> list[dict[str, float]]:
    """Return a row of metrics per step, as `engine.preview` says; nothing is trained. Raises JobError."""
    from sparsetrain.engine.preview import preview as rows  # brings torch

    return rows(job)
