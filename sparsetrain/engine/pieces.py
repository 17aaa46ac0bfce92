"""A run's whole state as named groups of tensors: the same on a disk, in memory, and between ranks.

Groups that all ranks share are model, masks, outer and, where every step exchanges, optimizer. A rank's own are
residual.rank00000 (with its random generators and scores), optimizer.rank00000 with local steps or an engine that
shards it, and between two exchanges local.rank00000, which is never on a disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsetrain.engine import checkpoint
from sparsetrain.engine.checkpoint import About, CheckpointError, Tensors
from sparsetrain.engine.local_store import LocalStore
from sparsetrain.engine.state import Milestone, RunState
from sparsetrain.engine.store import Stored
from sparsetrain.masks.lazy import Lazy
from sparsetrain.masks.maskset import spread
from sparsetrain.masks.saved import check_inactive

# Before the names of tensors in a rank's and in the masks' group.
SCORES = "scores/"
RANDOM = "random/"
SHARED = ("dormant", "explored", "method", "rewind")  # what the masks' group holds beside the masks
BROKEN = (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError)  # what a damaged state may lead to
STANDING = "standing/"  # among a rank's own weights: step, samples and position between two exchanges


class Source(Protocol):
    """Where a state is read from; its name stands in errors."""

    name: str

    def about(self) -> About: ...

    def read(self, group: str) -> Tensors: ...


@dataclasses.dataclass
class Pieces:
    """A state in memory; the tensors are the run's own until `copied`. `weights`, where there are any, are those whose
    digest `told` still lacks; `sets` are the update sets of weights that are held as the values there."""

    told: About
    groups: dict[str, Tensors]
    name: str = "memory"
    weights: Tensors = dataclasses.field(default_factory=dict)
    sets: Tensors = dataclasses.field(default_factory=dict)

    def about(self) -> About:
        """See Source."""
        return self.told

    def read(self, group: str) -> Tensors:
        """See Source. Raises CheckpointError where there is no such group."""
        if group not in self.groups:
            raise CheckpointError(f"{self.name}: has no {group}")
        return self.groups[group]

    def copied(self) -> Pieces:
        """Return the same with tensors of its own, in the memory of the host."""
        known: dict[Any, Tensor] = {}  # weights are in a group too: no second copy
        groups: dict[str, Tensors] = {}
        for group, tensors in self.groups.items():
            groups[group] = {key: _copy(tensor) for key, tensor in tensors.items()}
            known |= {_place(tensor): groups[group][key] for key, tensor in tensors.items()}
        weights = {key: known[_place(t)] if _place(t) in known else _copy(t) for key, t in self.weights.items()}
        return dataclasses.replace(self, groups=groups, weights=weights)

    def digested(self) -> Pieces:
        """Return the same with the digest of the weights."""
        if not self.weights:
            return self
        whole = Lazy(self.weights, lambda name: spread(self.weights[name], self.sets.get(name)))
        told = dataclasses.replace(self.told, weights_digest=checkpoint.digest_of(whole))
        return dataclasses.replace(self, told=told, weights={})


class Saved(Stored):
    """A checkpoint's folder on this machine as a source."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(LocalStore(folder.parent), folder.name)


def own(group: str, rank: int) -> str:
    """Return the name of a rank's own group."""
    return f"{group}.rank{rank:05d}"


def capture(state: RunState, digest: bool = True) -> Pieces:
    """Return this rank's part of the state, and what all ranks share. No copies are made but of weights that are spread
    over the ranks; between two exchanges the model goes back to the last one: the state must then be built anew.
    `digest`: of the weights, else the pieces hold what it is to be made of. Collective where weights are spread."""
    rank = state.world.rank
    groups: dict[str, Tensors] = {}
    if local := state.update.leave_local():
        at = torch.tensor([state.at.step, state.at.samples, state.at.position])
        groups[own("local", rank)] = {**local, STANDING: at}
    kept = state.exchange.state()
    kept[f"{RANDOM}torch"] = torch.get_rng_state()
    if state.masks is not None:
        kept |= {f"{SCORES}{key}": tensor for key, tensor in state.masks.rank_state().items()}
    groups[own("residual", rank)] = kept
    groups[_optimizer(state, rank)] = state.engine.state()
    with state.engine.whole() if state.engine.gathers else contextlib.nullcontext():
        held = {key: tensor.detach() for key, tensor in state.engine.tensors().items()}
        groups["model"] = {key: tensor.clone() for key, tensor in held.items()} if state.engine.gathers else held
        own_weights = {name: held.get(name, p.detach()) for name, p in state.parameters.items()}
    masks: dict[str, Any] = state.masks.state_dict() if state.masks is not None else {"packed": {}, "epoch": 0}
    shared = {f"{part}/{name}": tensor for part in SHARED for name, tensor in masks.get(part, {}).items()}
    groups["masks"] = {**masks["packed"], **shared}
    groups["outer"] = state.update.state()
    told = About(
        format=checkpoint.FORMAT,
        step=state.boundary.step,
        samples=state.boundary.samples,
        position=state.boundary.position,
        order=state.sampler.order,
        exchanges=state.exchange.step,
        mask_epoch=masks["epoch"],
        world_size=state.world.size,
        wall_s=state.wall_s,
        dense_steps=state.dense_steps,
        sent_bytes=dict(state.world.transport.meter.sent),
        weights_digest=state.weights_digest() if digest else "",
        regimes=state.exchange.choice(),
        ways=state.engine.ways(),
    )
    sets = {name: state.masks.masks.update(name) for name in state.engine.compact} if state.masks is not None else {}
    return Pieces(told, groups, weights={} if digest else own_weights, sets=sets)


def restore(state: RunState, source: Source) -> None:
    """Continue from `source`, also on another number of ranks. Raises CheckpointError when it does not fit, and where
    weights are spread over the ranks one without text when it does not fit another rank. Collective there."""
    problem: CheckpointError | None = None
    found: tuple[About, Tensors] | None = None
    try:
        found = source.about(), source.read("model")
        _restore(state, source, *found)
    except (CheckpointError, *BROKEN) as error:
        problem = _told(error, source)
    # A rank that goes on alone would wait for the others where weights are put together.
    if state.engine.gathers and any(state.world.transport.gather_bytes(b"x" if problem else b"")):
        raise problem or CheckpointError("")
    if problem is not None:
        raise problem
    assert found is not None
    about, weights = found
    try:
        if state.engine.gathers:
            with state.engine.whole(change=True):
                checkpoint.load_model(state.engine.tensors(), _as_held(state, weights), source.name)
        if state.weights_digest() != about.weights_digest:
            raise CheckpointError(f"{source.name}: weights do not have the digest that state.json names")
        if state.masks is not None:
            with state.engine.whole() if state.engine.gathers else contextlib.nullcontext():
                check_inactive(state.masks.masks, state.engine.weights())
    except BROKEN as error:
        raise _told(error, source) from error


def _told(error: Exception, source: Source) -> CheckpointError:
    """Return an error of whatever a damaged state leads to as one of the checkpoint."""
    if isinstance(error, CheckpointError):
        return error
    told = CheckpointError(f"{source.name}: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


def _restore(state: RunState, source: Source, about: About, weights: Tensors) -> None:
    """Restore what a rank holds for itself."""
    state.forget()  # what a checkpoint that turned out unreadable has left
    _check_shapes(state, weights, source.name)
    if state.masks is not None:
        packed = source.read("masks")
        parts = {part: _under(packed, f"{part}/") for part in SHARED}
        state.masks.load_state_dict({"packed": packed, "epoch": about.mask_epoch, **parts})
    state.engine.go_on(about.ways)
    if not state.engine.gathers:
        state.engine.load(_as_held(state, weights), source.name)
    state.sync_masks()
    state.update.load_state(_as_held(state, source.read("outer")))
    ranks, rank = about.world_size, state.world.rank
    if state.engine.shards and ranks != state.world.size:
        raise CheckpointError(f"{source.name}: is of {ranks} ranks, each with its shard of the optimizer's state")
    every_step = state.job.exchange.every == 1
    saved = source.read(_optimizer(state, rank % ranks))
    # What is spread over the ranks is each rank's own, and nothing to put together.
    saved = saved if state.engine.shards else _as_held(state, saved)
    state.engine.load_state(saved, every_step and about.exchanges > 0)
    if ranks == state.world.size:
        kept = source.read(own("residual", rank))
    else:
        kept = _mean([source.read(own("residual", r)) for r in range(ranks)])
    _check_kept(state, kept, source.name)
    state.exchange.go_on(about.exchanges, about.regimes)
    within = (SCORES, RANDOM)
    state.exchange.load_state({name: tensor for name, tensor in kept.items() if not name.startswith(within)})
    if state.masks is not None:
        state.masks.load_rank_state(_under(kept, SCORES))
    if f"{RANDOM}torch" in kept and ranks == state.world.size:
        torch.set_rng_state(kept[f"{RANDOM}torch"])
    position = about.samples if about.position is None else about.position
    state.at = state.boundary = Milestone(step=about.step, samples=about.samples, position=position)
    state.sampler.order = about.order
    state.wall_s = about.wall_s
    state.dense_steps = about.dense_steps
    state.world.transport.meter.sent.update(about.sent_bytes)


def go_local(state: RunState, pieces: Pieces) -> None:
    """Go on between two exchanges, where this rank's own group says so; after `restore`."""
    local = pieces.groups.get(own("local", state.world.rank))
    if local:
        step, samples, position = local[STANDING].tolist()
        state.update.go_local(local)
        state.at = Milestone(step=step, samples=samples, position=position)


def _check_kept(state: RunState, kept: Tensors, name: str) -> None:
    """Raise CheckpointError for state of error feedback that is missing, of another type or not finite."""
    for key, present in state.exchange.state().items():
        if key.startswith("collective/"):
            continue  # learned in exchanges, and learned again
        if key not in kept:
            raise CheckpointError(f"{name}: has no tensor {key}")
        saved = kept[key]
        if saved.dtype != present.dtype or not bool(torch.isfinite(saved).all()):
            raise CheckpointError(f"{name}: {key} is not finite {str(present.dtype).removeprefix('torch.')}")


def _check_shapes(state: RunState, weights: Tensors, name: str) -> None:
    """Raise CheckpointError for weights of another model, before what is said of its masks; those that are held as the
    values of a mask have to wait for it."""
    masks = state.masks.masks.masks if state.masks is not None else {}
    own = {} if state.engine.gathers else state.engine.tensors()
    for key, saved in weights.items():
        shape = masks[key].shape if key in masks and key in own else own.get(key, saved).shape
        if saved.shape != shape and (key not in masks or saved.ndim > 1):
            raise CheckpointError(f"{name}: {key} is {tuple(saved.shape)}, the model's is {tuple(shape)}")


def _as_held(state: RunState, tensors: Tensors) -> Tensors:
    """Return tensors that go by weights as the engine holds them: whole, or the values of the update set."""
    if state.masks is None:
        return tensors
    masks, held = state.masks.masks, dict(tensors)
    for key, tensor in tensors.items():
        name = key.rpartition("/")[2]
        if name not in masks.masks:
            continue
        mask = masks.update(name)
        if name in state.engine.compact and tensor.shape == mask.shape:
            held[key] = tensor[mask.to(tensor.device)]
        elif name not in state.engine.compact and tensor.ndim == 1 < mask.ndim and len(tensor) == int(mask.sum()):
            held[key] = spread(tensor, mask.to(tensor.device))
    return held


def _optimizer(state: RunState, rank: int) -> str:
    """Return the group with a rank's optimizer state."""
    alone = state.engine.shards or state.job.exchange.every > 1
    return own("optimizer", rank) if alone else "optimizer"


def _under(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _mean(parts: list[Tensors]) -> Tensors:
    """Return the mean state, which every rank of the new world starts from: the mean over ranks is preserved.

    What a collective learned about the old world is left out, and so are the random generators.
    """
    names = [name for name in parts[0] if not name.startswith(("collective/", RANDOM))]
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in names}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _place(tensor: Tensor) -> Any:
    """Return what two tensors have in common only where they are the same."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
