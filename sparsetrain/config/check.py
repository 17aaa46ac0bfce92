"""Rules that need more than one field of the job."""

from __future__ import annotations

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job


def check(job: Job) -> None:
    """Raise JobError, naming the dotted path, where two parts of the job contradict each other."""
    masks, exchange = job.masks, job.exchange
    if exchange.every > job.train.steps:
        raise JobError(
            f"exchange.every: {exchange.every} is more than train.steps ({job.train.steps}): nothing would be sent"
        )
    boundaries = {"checkpoint.every": job.checkpoint.every, "train.evaluate_every": job.train.evaluate_every}
    if masks is not None:
        boundaries["masks.every"] = masks.every
    for path, value in boundaries.items():
        if value % exchange.every:
            raise JobError(
                f"{path}: {value} is not a multiple of exchange.every ({exchange.every}): "
                "replicas are equal only at exchanges"
            )
    if masks is not None and masks.end <= masks.begin and masks.method.name != "static":
        raise JobError(f"masks.end: {masks.end} must be greater than masks.begin ({masks.begin})")
