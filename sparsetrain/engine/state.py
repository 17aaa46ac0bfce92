"""Everything that a run is made of on one rank, how it is built from the job, and how it is saved and restored."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any

import torch
from torch import Tensor, nn

from sparsetrain import registry
from sparsetrain.collective.world import World
from sparsetrain.config.coupling import Coupling
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job, Masks
from sparsetrain.config.load import checked
from sparsetrain.data.sampler import Sampler
from sparsetrain.engine import checkpoint, compact, operations
from sparsetrain.engine.engine import Engine, Parts
from sparsetrain.engine.operations import Operations
from sparsetrain.engine.sparse_mean import sparse_mean
from sparsetrain.engine.update import EveryStep, LocalSteps
from sparsetrain.gradient.channel import compacted
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.schedule import MaskSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Milestone:
    """How far a run has come: optimizer steps, samples seen, and where in the data the next step begins."""

    step: int = 0
    samples: int = 0
    position: int = 0


@dataclasses.dataclass
class RunState:
    """The parts of a run and how far it has come: `at` now, `boundary` at the last exchange, where replicas were equal;
    `masks_due` when the masks have not yet followed that exchange; `wall_s` seconds of training, `dense_steps` dense
    training steps that would have taken as many operations."""

    job: Job
    world: World
    model: Any
    data: Any
    sampler: Sampler
    parameters: dict[str, nn.Parameter]
    engine: Engine
    exchange: GradientExchange
    update: EveryStep | LocalSteps
    masks: MaskController | None
    operations: Operations | None = None
    at: Milestone = Milestone()
    boundary: Milestone = Milestone()
    masks_due: bool = False
    wall_s: float = 0.0
    dense_steps: float = 0.0

    @property
    def step(self) -> int:
        """Return how many steps are finished."""
        return self.at.step

    @property
    def global_batch(self) -> int:
        """Return the samples that one step takes over all ranks."""
        return self.sampler.batch

    def advance(self, exchanged: bool) -> None:
        """Note that a step is finished, and whether it crossed ranks."""
        at = self.at
        self.at = Milestone(
            step=at.step + 1,
            samples=at.samples + self.sampler.batch,
            position=self.sampler.after(at.position),
        )
        if exchanged:
            self.boundary = self.at
            self.masks_due = self.masks is not None

    def samples(self) -> Tensor:
        """Return the numbers of the samples that this rank takes in the step that comes."""
        return self.sampler.indices(self.at.position)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Return whose groups hold the learning rates."""
        return self.engine.optimizer

    def elements(self, name: str) -> int:
        """Return how many weights a parameter has, those that are masked included."""
        masks = self.masks.masks.masks if self.masks is not None else {}
        return masks[name].numel() if name in masks else self.parameters[name].numel()

    def weights_digest(self) -> str:
        """Return the blake2b digest of all weights, as hex: equal on all ranks after an exchange. Collective."""
        with self.engine.whole() if self.engine.gathers else contextlib.nullcontext():
            return checkpoint.digest_of(self.engine.weights())

    def sync_masks(self) -> None:
        """Tell the exchange and the update rule which coordinates are active now."""
        if self.masks is not None:
            self.exchange.set_masks(self.masks.limits, self.masks.masks.epoch)
            self.update.set_masks(self.masks.limits)

    def close(self) -> None:
        """End the exchange's threads and let go of the engine: this state trains no more."""
        self.exchange.close()
        self.engine.close()

    def forget(self) -> None:
        """Keep nothing of earlier gradients: weights have been rewound."""
        self.exchange.forget()
        self.update.forget()

    def forward(self, step: int | None = None) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the model computes: with the forward sets of its masks. `step` is the number of
        the training step, None in evaluation."""
        return self.masks.forward(step) if self.masks is not None else contextlib.nullcontext()

    @property
    def streams(self) -> bool:
        """Return whether backward itself leaves whole gradients."""
        return self.masks is None or not self.masks.learns


def build(job: Job, world: World, calibrations: pathlib.Path | None = None, data: Any = None) -> RunState:
    """Return the state at step 0: weights from the seed (or `train.init_from`), the same on all ranks.

    `calibrations` is the folder where `regime: auto` keeps what it measures, None: nowhere. `data` is the job's where
    it is loaded already. Collective.
    """
    device = world.transport.device
    torch.manual_seed(job.seed)
    model = job.model.build().to(device)
    data = data if data is not None else job.data.build()
    batch = global_batch(job, world.size)
    _check_fit(job, data, batch, world)
    if job.train.init_from:
        path = pathlib.Path(job.train.init_from)
        try:
            own = checkpoint.model_tensors(model)
            checkpoint.load_model(own, checkpoint.pretrained(path, own), path)
        except checkpoint.CheckpointError as error:
            raise JobError(f"train.init_from: {error}") from error
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = job.optimizer.build().optimizer(model)
    masks = None
    if job.masks is not None:
        transport = world.transport
        masks = MaskController(
            job.masks,
            parameters,
            maskable=maskable(model, parameters),
            couplings=couplings(job.masks, model),
            seed=job.seed,
            steps=job.train.steps,
            gather=lambda data: transport.gather_bytes(data, "mask"),
            mean=lambda tensors: transport.mean(tensors, "mask"),
            sparse_mean=lambda values, places, wanted: sparse_mean(values, places, wanted, transport, "mask"),
            fresh=job.train.init_from is None,
        )
        _check_boundaries(job, masks.schedule)
        masks.join(optimizer)
        parameters = {**masks.learned, **parameters}  # first, as backward leaves them last
    exchanges = -(-job.train.steps // job.exchange.every)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    exchange = GradientExchange(job.exchange, shapes, world, exchanges, device, calibrations)
    sampler = Sampler(data.train_size, batch, world.rank, world.size, job.seed)
    counted, example = None, ()
    if masks is not None:
        example = tuple(part.to(device) for part in data.train_batch(sampler.whole(0)[: job.train.batch_size]))
        counted = operations.count(model, example, masks.parameters)
    pull = masks.pull if masks is not None else _nothing
    parts = Parts(model=model, parameters=parameters, optimizer=optimizer, job=job, world=world, pull=pull)
    engine = _engine(parts, masks, exchange, example)
    update: EveryStep | LocalSteps
    if job.exchange.every == 1:
        update = EveryStep(parameters, engine, exchange, world)
    else:
        mask_gradients = masks.mask_gradients if masks is not None else _nothing
        every, outer, limits = job.exchange.every, job.exchange.outer, masks.limits if masks is not None else {}
        update = LocalSteps(parameters, engine, exchange, every, outer, world, mask_gradients, limits)
    state = RunState(job, world, model, data, sampler, parameters, engine, exchange, update, masks, counted)
    if masks is not None and engine.packs:
        masks.hold(engine.weights())
    state.sync_masks()
    # Dropout and other draws differ between ranks; weights and masks are drawn above, from the shared seed.
    torch.manual_seed(job.seed * 1_000_003 + world.rank + 1)
    return state


def _engine(parts: Parts, masks: MaskController | None, exchange: GradientExchange, example: tuple[Tensor, ...]) -> Any:
    """Return who holds the weights: the job's engine, or the one that holds masked weights without the others."""
    job, transport = parts.job, parts.world.transport
    if job.compute == "masked" or masks is None or compact.refusal(job):
        return job.engine.build(parts)
    return compact.CompactEngine(
        parts,
        masks=lambda: masks.masks,
        bucketed=lambda names: compacted(exchange.channels, names),
        gather=lambda data: transport.gather_bytes(data, "control"),
        example=example,
        couplings=couplings(job.masks, parts.model) if job.masks is not None else (),
    )


def global_batch(job: Job, ranks: int) -> int:
    """Return the samples of one step: those of the most workers that the job allows, or what `ranks` workers take."""
    workers = job.cluster.workers
    constant = workers.varies and job.train.resize == "constant"
    return job.train.batch_size * job.train.accumulate * (workers.max if constant else ranks)


def maskable(model: Any, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Return what the model names; else all weights of two or more axes but embeddings and what is tied to one."""
    if hasattr(model, "maskable"):
        return model.maskable()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [name for name, p in parameters.items() if p.ndim >= 2 and id(p) not in embeddings]


def couplings(masks: Masks, model: Any) -> tuple[Coupling, ...]:
    """Return what the model says of itself, where the structure asks for it. Raises JobError for what are none."""
    return couplings_of(model) if getattr(registry.load("structure", masks.structure.name), "couples", "") else ()


def couplings_of(model: Any) -> tuple[Coupling, ...]:
    """Return what the model says of itself, nothing where it does not. Raises JobError for what are no couplings."""
    if not hasattr(model, "couplings"):
        return ()
    try:
        found = tuple(model.couplings())
        if any(not isinstance(each, Coupling) for each in found):
            raise TypeError("not all are Coupling")
        return tuple(checked(each) for each in found)
    except Exception as error:  # whatever a user's model does
        raise JobError(f"masks.structure: the model's couplings() are none: {type(error).__name__}: {error}") from error


def _nothing(*_: Any) -> None:
    return


def _check_boundaries(job: Job, schedule: MaskSchedule) -> None:
    """Raise JobError for a mask update between two exchanges, where replicas differ, or one that falls on the exchange
    with which the density warm-up begins: what that keeps back would be of masks that are gone."""
    exchange, updates = job.exchange, schedule.updates()
    warms = exchange.regime == "sparse" and exchange.warmup > 0 and exchange.warmup_density > exchange.density
    if warms and updates and updates[0] <= exchange.every:
        raise JobError(
            f"exchange.warmup: begins with the exchange of step {exchange.every}, after which masks change "
            f"(step {updates[0]}); allowed: 0, or a later first update (masks.begin, masks.every)"
        )
    for step in (schedule.rewind, *updates):
        if step % job.exchange.every:
            what = "weights to rewind to" if step == schedule.rewind else "an update"
            raise JobError(
                f"masks.schedule: {what} after step {step}, which is not a multiple of exchange.every "
                f"({job.exchange.every}): replicas are equal only at exchanges; allowed: its multiples"
            )


def _check_fit(job: Job, data: Any, batch: int, world: World) -> None:
    context, wanted = getattr(job.data.config, "context", None), getattr(job.model.config, "context", None)
    if context is not None and wanted is not None and context > wanted:
        raise JobError(f"data.context: {context} is more than model.context ({wanted})")
    if batch > data.train_size:
        accumulated = f" x {job.train.accumulate} (train.accumulate)" if job.train.accumulate > 1 else ""
        raise JobError(
            f"train.batch_size: {job.train.batch_size}{accumulated} x {world.size} workers is more than "
            f"{data.train_size} samples"
        )
