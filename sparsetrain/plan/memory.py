"""Bytes that a rank keeps, by what they are for; activations and the runtime are not among them."""

from __future__ import annotations

from sparsetrain.config.job import Job
from sparsetrain.plan.model import Model

FP32 = 4
OPTIMIZER = {"adamw": 2, "sgd": 1}  # fp32 numbers a weight
STORED = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0 + 4 / 256}


def memory_of(job: Job, model: Model, regime: str) -> dict[str, float]:
    """Return bytes by kind for a regime: weights, gradients, optimizer, residual, exchange buffers, masks."""
    fields = len(job.exchange.error_feedback.build().fields)
    active = sum(part.active for part in model.parts)
    widest = max((part.active for part in model.parts), default=0)
    momentum = getattr(job.optimizer.config, "momentum", 1.0)
    numbers = OPTIMIZER.get(job.optimizer.name, 2) if momentum or job.optimizer.name != "sgd" else 0
    local = 1 if job.exchange.every > 1 else 0  # weights of the last exchange
    return {
        "weights": FP32 * model.weights * (1 + local),
        "gradients": FP32 * model.weights,
        "optimizer": FP32 * numbers * model.weights,
        "residual": STORED[job.exchange.residual] * fields * active,
        # Means of all buckets, and the gradient of those that are under way.
        "buffers": FP32 * (active + min(active, 3 * widest) + (model.weights if model.masked else 0)),
        "masks": float(model.masked),
    }
