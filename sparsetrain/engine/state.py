"""Everything that a run is made of on one rank, how it is built from the job, and how it is saved and restored."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
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
from sparsetrain.engine import checkpoint, operations
from sparsetrain.engine.operations import Operations
from sparsetrain.engine.sparse_mean import sparse_mean
from sparsetrain.engine.update import EveryStep, LocalSteps
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.saved import check_inactive
from sparsetrain.masks.schedule import MaskSchedule

# Before the names of tensors in a rank's and in the masks' file.
SCORES = "scores/"
SHARED = ("dormant", "explored", "method", "rewind")  # what the masks' file holds beside the masks


@dataclasses.dataclass
class RunState:
    """The parts of a run and how far it has come: `step` optimizer steps, `wall_s` seconds of training, `dense_steps`
    dense training steps that would have taken as many operations."""

    job: Job
    world: World
    model: Any
    data: Any
    sampler: Sampler
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    exchange: GradientExchange
    update: EveryStep | LocalSteps
    masks: MaskController | None
    operations: Operations | None = None
    step: int = 0
    wall_s: float = 0.0
    dense_steps: float = 0.0

    @property
    def global_batch(self) -> int:
        """Return the samples that one step takes over all ranks."""
        return self.job.train.batch_size * self.job.train.accumulate * self.world.size

    def weights_digest(self) -> str:
        """Return the blake2b digest of all weights, as hex: equal on all ranks after an exchange."""
        digest = hashlib.blake2b(digest_size=16)
        for name, parameter in self.parameters.items():
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def sync_masks(self) -> None:
        """Tell the exchange and the update rule which coordinates are active now."""
        if self.masks is not None:
            self.exchange.set_masks(self.masks.limits, self.masks.masks.epoch)
            self.update.set_masks(self.masks.limits)

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


def build(job: Job, world: World, calibrations: pathlib.Path | None = None) -> RunState:
    """Return the state at step 0: weights from the seed (or `train.init_from`), the same on all ranks.

    `calibrations` is the folder where `regime: auto` keeps what it measures, None: nowhere. Collective.
    """
    device = world.transport.device
    torch.manual_seed(job.seed)
    model = job.model.build().to(device)
    data = job.data.build()
    _check_fit(job, data, world)
    if job.train.init_from:
        path = pathlib.Path(job.train.init_from)
        try:
            checkpoint.load_model(model, checkpoint.read_tensors(path), path)
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
    mask_gradients, pull = (masks.mask_gradients, masks.pull) if masks is not None else (_nothing, lambda step: None)
    clip, outer = job.train.clip, job.exchange.outer
    update: EveryStep | LocalSteps
    if job.exchange.every == 1:
        update = EveryStep(parameters, optimizer, exchange, clip, world, pull)
    else:
        update = LocalSteps(parameters, optimizer, exchange, clip, job.exchange.every, outer, mask_gradients, pull)
    sampler = Sampler(data.train_size, job.train.batch_size, world.rank, world.size, job.seed)
    state = RunState(job, world, model, data, sampler, parameters, optimizer, exchange, update, masks)
    state.sync_masks()
    if masks is not None:
        batch = tuple(part.to(device) for part in data.train_batch(sampler.indices(0)))
        state.operations = operations.count(model, batch, masks.parameters)
    # Dropout and other draws differ between ranks; weights and masks are drawn above, from the shared seed.
    torch.manual_seed(job.seed * 1_000_003 + world.rank + 1)
    return state


def maskable(model: Any, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Return what the model names; else all weights of two or more axes but embeddings and what is tied to one."""
    if hasattr(model, "maskable"):
        return model.maskable()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [name for name, p in parameters.items() if p.ndim >= 2 and id(p) not in embeddings]


def couplings(masks: Masks, model: Any) -> tuple[Coupling, ...]:
    """Return what the model says of itself, where the structure asks for it. Raises JobError for what are none."""
    if not getattr(registry.load("structure", masks.structure.name), "couples", "") or not hasattr(model, "couplings"):
        return ()
    try:
        found = tuple(model.couplings())
        if any(not isinstance(each, Coupling) for each in found):
            raise TypeError("not all are Coupling")
        return tuple(checked(each) for each in found)
    except Exception as error:  # whatever a user's model does
        raise JobError(f"masks.structure: the model's couplings() are none: {type(error).__name__}: {error}") from error


def _nothing() -> None:
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


def _check_fit(job: Job, data: Any, world: World) -> None:
    context, wanted = getattr(job.data.config, "context", None), getattr(job.model.config, "context", None)
    if context is not None and wanted is not None and context > wanted:
        raise JobError(f"data.context: {context} is more than model.context ({wanted})")
    if job.train.batch_size * world.size > data.train_size:
        raise JobError(
            f"train.batch_size: {job.train.batch_size} x {world.size} workers is more than {data.train_size} samples"
        )


def save(state: RunState, root: pathlib.Path) -> pathlib.Path:
    """Write a complete checkpoint under `root` and return its folder. Collective; falls on exchange boundaries."""
    world, final = state.world, checkpoint.folder_of(root, state.step)
    unfinished = final.with_name(final.name + ".unfinished")
    if world.rank == 0:
        unfinished.mkdir(parents=True, exist_ok=True)
    world.transport.barrier()
    rank = f"rank{world.rank:05d}"
    own = state.exchange.state()
    own["random/torch"] = torch.get_rng_state()
    if state.masks is not None:
        own |= {f"{SCORES}{key}": tensor for key, tensor in state.masks.rank_state().items()}
    checkpoint.write_tensors(unfinished / f"residual.{rank}.safetensors", own)
    optimizer = checkpoint.optimizer_tensors(state.optimizer, state.parameters)
    if state.job.exchange.every > 1:
        checkpoint.write_tensors(unfinished / f"optimizer.{rank}.safetensors", optimizer)
    if world.rank == 0:
        if state.job.exchange.every == 1:
            checkpoint.write_tensors(unfinished / "optimizer.safetensors", optimizer)
        checkpoint.write_tensors(unfinished / "model.safetensors", checkpoint.model_tensors(state.model))
        masks = state.masks.state_dict() if state.masks is not None else {"packed": {}, "epoch": 0}
        shared = {f"{part}/{name}": tensor for part in SHARED for name, tensor in masks.get(part, {}).items()}
        checkpoint.write_tensors(unfinished / "masks.safetensors", {**masks["packed"], **shared})
        checkpoint.write_tensors(unfinished / "outer.safetensors", state.update.state())
        about = {
            "format": checkpoint.FORMAT,
            "step": state.step,
            "samples": state.step * state.global_batch,
            "exchanges": state.exchange.step,
            "mask_epoch": masks["epoch"],
            "world_size": world.size,
            "wall_s": state.wall_s,
            "dense_steps": state.dense_steps,
            "sent_bytes": world.transport.meter.sent,
            "weights_digest": state.weights_digest(),
            "regimes": state.exchange.choice(),
        }
        checkpoint.write_text(unfinished / "state.json", json.dumps(about, indent=1))
    world.transport.barrier()
    if world.rank == 0:
        checkpoint.publish(unfinished, final, state.job.checkpoint.keep)
    world.transport.barrier()
    return final


def restore(state: RunState, folder: pathlib.Path) -> None:
    """Continue from a checkpoint, also on another number of ranks. Raises CheckpointError when it does not fit."""
    try:
        _restore(state, folder)
    except checkpoint.CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise checkpoint.CheckpointError(f"{folder}: {type(error).__name__}: {error}") from error


def _restore(state: RunState, folder: pathlib.Path) -> None:
    state.forget()  # what a checkpoint that turned out unreadable has left
    about = checkpoint.read_about(folder)
    checkpoint.load_model(state.model, checkpoint.read_saved(folder, "model.safetensors"), folder)
    if state.masks is not None:
        packed = checkpoint.read_saved(folder, "masks.safetensors")
        parts = {part: _under(packed, f"{part}/") for part in SHARED}
        state.masks.load_state_dict({"packed": packed, "epoch": about.mask_epoch, **parts})
    state.sync_masks()
    state.update.load_state(checkpoint.read_saved(folder, "outer.safetensors"))
    ranks, rank = about.world_size, state.world.rank
    own = "optimizer.safetensors"
    if state.job.exchange.every > 1:
        own = f"optimizer.rank{rank % ranks:05d}.safetensors"
    every_step = state.job.exchange.every == 1
    checkpoint.load_optimizer(state.optimizer, state.parameters, checkpoint.read_saved(folder, own), every_step)
    if ranks == state.world.size:
        kept = checkpoint.read_saved(folder, f"residual.rank{rank:05d}.safetensors")
    else:
        saved = (checkpoint.read_saved(folder, f"residual.rank{r:05d}.safetensors") for r in range(ranks))
        kept = _mean(list(saved))
    _check_kept(state, kept, folder)
    state.exchange.go_on(about.exchanges, about.regimes)
    state.exchange.load_state({name: tensor for name, tensor in kept.items() if not name.startswith(SCORES)})
    if state.masks is not None:
        state.masks.load_rank_state(_under(kept, SCORES))
    if ranks == state.world.size:
        torch.set_rng_state(kept["random/torch"])
    # A changed batch moves the border between finished and new samples to a whole number of steps.
    state.step = about.step
    state.wall_s = about.wall_s
    state.dense_steps = about.dense_steps
    state.world.transport.meter.sent.update(about.sent_bytes)
    if state.weights_digest() != about.weights_digest:
        raise checkpoint.CheckpointError(f"{folder}: weights do not have the digest that state.json names")
    if state.masks is not None:
        check_inactive(state.masks.masks, state.parameters)


def _check_kept(state: RunState, kept: dict[str, Tensor], folder: pathlib.Path) -> None:
    """Raise CheckpointError for state of error feedback that is missing, of another type or not finite."""
    for key, own in state.exchange.state().items():
        if key.startswith("collective/"):
            continue  # learned in exchanges, and learned again
        if key not in kept:
            raise checkpoint.CheckpointError(f"{folder}: has no tensor {key}")
        saved = kept[key]
        if saved.dtype != own.dtype or not bool(torch.isfinite(saved).all()):
            raise checkpoint.CheckpointError(f"{folder}: {key} is not finite {str(own.dtype).removeprefix('torch.')}")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _mean(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean state, which every rank of the new world starts from: the mean over ranks is preserved.

    What a collective learned about the old world is left out, and so are the random generators.
    """
    names = [name for name in parts[0] if not name.startswith(("collective/", "random/"))]
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in names}
