"""Evaluation on a fixed held-out set that all ranks share."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparsetrain.collective.world import World
from sparsetrain.engine.engine import Engine


def _sums(model: Any, batch: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """Return what a model knows of a batch, at least the sum of its losses."""
    if hasattr(model, "metrics"):
        return model.metrics(batch)
    return {"loss_sum": float(model.loss(batch)) * len(batch[0]), "count": len(batch[0])}


@torch.no_grad()
def evaluate(engine: Engine, data: Any, batch_size: int, batches: int, world: World) -> dict[str, float]:
    """Return eval/loss and, where the model knows them, eval/bits_per_byte and eval/accuracy over all ranks.

    The first `batches` x `batch_size` held-out samples are dealt to the ranks in turn. Collective.
    """
    model: Any = engine.model
    for buffer in model.buffers():
        if buffer.is_floating_point():
            world.transport.broadcast(buffer, "control")
    model.eval()
    samples = min(data.eval_size, batches * batch_size)
    starts = range(0, samples, batch_size)
    sums = torch.zeros(3, dtype=torch.float64)
    own = list(starts)[world.rank :: world.size]
    # Where weights are gathered layer by layer, every rank has to pass through as often as the others.
    idle = -(-len(starts) // world.size) - len(own) if engine.gathers else 0
    for number, start in enumerate([*own, *[0] * idle]):
        batch = data.eval_batch(torch.arange(start, min(start + batch_size, samples)))
        batch = engine.inputs(tuple(part.to(world.transport.device) for part in batch))
        found = engine.answer(lambda asked, batch=batch: _sums(asked, batch))
        if number >= len(own):
            continue
        sums += torch.tensor(
            [float(found[key]) if key in found else math.nan for key in ("loss_sum", "count", "correct")]
        )
    model.train()
    total = world.transport.rank_ordered_sum(sums.to(world.transport.device), "control").tolist()
    loss = total[0] / total[1]
    result = {"eval/loss": loss}
    if getattr(model, "units", None) == "byte":
        result["eval/bits_per_byte"] = loss / math.log(2)
    if not math.isnan(total[2]):
        result["eval/accuracy"] = total[2] / total[1]
    return result
