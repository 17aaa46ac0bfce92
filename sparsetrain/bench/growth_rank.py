"""One rank of `bench growth`: `python -m sparsetrain.bench.growth_rank N.json` writes its figures to N.figures."""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain.bench.growth import DENSE, Plan
from sparsetrain.bench.rank import Way, serve
from sparsetrain.bench.ranks import Place
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.index_codes import Auto
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.torch_dist import torch_world
from sparsetrain.collective.transport import Transport
from sparsetrain.collective.value_codes import Int8
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.data.sampler import Sampler
from sparsetrain.engine.matmul import prefer_fast_matmul
from sparsetrain.engine.sparse_mean import sparse_mean
from sparsetrain.engine.state import RunState, build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.masks.agreement import agree
from sparsetrain.masks.candidates import affordable
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.methods.rigl import RigL
from sparsetrain.masks.sources import Means, SparseMean, Tensors

ONE_ROUND = "one round"


def job_of(plan: Plan) -> Job:
    """Return the job that is trained: RigL by the dense rule, lossless exchange."""
    settings = (
        f"model.layers={plan.layers} model.width={plan.width} model.context={plan.context} "
        f"data.context={plan.context} train.batch_size={plan.batch} train.steps={plan.steps} exchange.every=1 "
        f"exchange.regime=packed exchange.values=fp32 masks.method=rigl masks.sparsity={plan.sparsity} "
        f"masks.every={plan.every} log.wandb.mode=disabled"
    )
    return load_job("text_gpt", tuple(settings.split()))


def looked_at(updates: Sequence[int], points: int) -> list[int]:
    """Return so many of the updates, evenly spread, the first and the last among them. Raises ValueError for fewer."""
    if len(updates) < points:
        raise ValueError(f"{points} points of a run with {len(updates)} mask updates")
    return [updates[round(n * (len(updates) - 1) / (points - 1))] for n in range(points)]


def local_gradients(state: RunState, batch: int) -> Tensors:
    """Return this rank's gradients of the masked tensors for the next batch of another size."""
    assert state.masks is not None
    world = state.world
    sampler = Sampler(state.data.train_size, batch * world.size, world.rank, world.size, state.job.seed)
    with state.forward():
        loss = state.model.loss(state.data.train_batch(sampler.indices(state.step * sampler.batch)))
    parameters = state.masks.parameters
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def one_round(transport: Transport) -> SparseMean:
    """Return what takes the sums of what was proposed for means: everyone sends its proposals to everyone."""
    codec = Codec(Auto(Auto.Config()), Int8(Int8.Config()))

    def mean(values: Tensor, places: Tensor, wanted: Sequence[tuple[Layout, int]]) -> tuple[Tensor, Tensor]:
        message = codec.encode(Entries(places.int(), values[places]), Frame(values.numel(), 0, 0))
        total = torch.zeros_like(values)
        for source, each in enumerate(transport.all_gather_v(message, "mask")):
            entries = codec.decode(each, Frame(values.numel(), 0, 0), source)
            assert entries.indices is not None
            total[entries.indices.long()] += entries.values / transport.size
        return torch.arange(values.numel()), total

    return mean


class Look:
    """Asks all rules at one moment of a run, with a transport whose meter counts for nothing else."""

    def __init__(self, state: RunState, plan: Plan, transport: Transport) -> None:
        self.state = state
        self.plan = plan
        self.transport = transport

    def rows(self, loss: float) -> Iterator[dict[str, Any]]:
        """Yield a row for each batch and rule, the dense rule first. Collective."""
        masks = self.state.masks
        assert masks is not None
        step = self.state.step + 1
        fraction = masks.method.drop_fraction(masks.span.fraction(step))
        growing = sum(int(fraction * count) for count in masks.masks.counts().values())
        size = sum(mask.numel() for mask in masks.masks.masks.values())
        for batch in self.plan.batches:
            gradients = local_gradients(self.state, batch)
            dense: Tensor | None = None
            for rule, config, sparse in self._rules():
                before = self.transport.meter.sent["mask"]
                found = self._grown(step, gradients, RigL(config), sparse)
                dense = found if dense is None else dense
                proposed = affordable(growing, size, config.share)[0] / max(1, growing)
                yield {
                    "step": step,
                    "loss": loss,
                    "drop_fraction": fraction,
                    "grown": int(dense.sum()),
                    "batch": batch,
                    "rule": rule,
                    "proposed": None if config.growth == "dense" else proposed,
                    "recall": int((found & dense).sum()) / max(1, int(dense.sum())),
                    "bytes": self.transport.meter.sent["mask"] - before,
                }

    def _rules(self) -> Iterator[tuple[str, RigL.Config, SparseMean]]:
        whole = functools.partial(sparse_mean, transport=self.transport, kind="mask")
        yield DENSE, RigL.Config(), whole
        for share in self.plan.shares:
            yield f"candidates {share:.1%}", RigL.Config(growth="candidates", share=share), whole
        middle = RigL.Config(growth="candidates", share=self.plan.shares[len(self.plan.shares) // 2])
        yield ONE_ROUND, middle, one_round(self.transport)

    def _grown(self, step: int, gradients: Tensors, method: RigL, sparse: SparseMean) -> Tensor:
        """Return what the method would grow now, as flags of all masked weights; all ranks prove that they agree."""
        masks = self.state.masks
        assert masks is not None
        means = Means(functools.partial(self.transport.mean, kind="mask"), sparse)
        source = method.source(method, [step], means, masks.chooser.layouts, masks.span)
        weights = {name: parameter.detach() for name, parameter in masks.parameters.items()}
        source.observe(step, weights, gradients, masks.masks)
        signal = source.take()
        if signal is None:
            raise ValueError("a gradient is not finite")
        new = masks.chooser.propose(masks.masks, weights, signal, masks.config.sparsity, masks.span.fraction(step))
        agree(new, self.transport.gather_bytes, "raise")
        return torch.cat([(mask & ~masks.masks.masks[name]).flatten() for name, mask in new.masks.items()])


def measure(place: Place, plan: Plan, way: Way) -> dict[str, Any]:
    """Return this rank's figures: numbers of weights, and a row for each update, batch and rule. Collective."""
    prefer_fast_matmul(lambda line: None)
    state = build(job_of(plan), torch_world())
    assert state.masks is not None
    trainer, look = Trainer(state, pathlib.Path(), lambda line: None), Look(state, plan, way())
    points = looked_at(state.masks.schedule.updates(), plan.points)
    rows: list[dict[str, Any]] = []
    while state.step < points[-1]:
        if state.step + 1 in points:
            rows += look.rows(trainer.recorder.window.mean_loss())
            trainer.recorder.window.losses.clear()
        trainer.train_step()
    state.exchange.close()
    masked = sum(mask.numel() for mask in state.masks.masks.masks.values())
    return {"weights": sum(p.numel() for p in state.parameters.values()), "masked": masked, "rows": rows}


if __name__ == "__main__":
    serve(sys.argv[1], Plan, measure)
