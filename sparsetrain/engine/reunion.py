"""How ranks that have lost others, or take in new ones, come to one state: from memory, without a checkpoint.

Each says where it stands. Thanks to the words after every exchange survivors are at most one commit apart: who waits
for words that never came has everything, and follows those that went ahead; where somebody has not everything nobody
went ahead, and that one step is done again. Who is new gets the shared state from a survivor. Masks that changed on
some ranks only go back to before the change, from a copy that is kept until the next exchange.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as pack
from torch import Tensor

from sparsetrain.collective.transport import PeerLost
from sparsetrain.collective.world import World
from sparsetrain.config.component import STRICT, adapter
from sparsetrain.engine.checkpoint import About, Tensors
from sparsetrain.engine.pieces import RANDOM, SCORES, Pieces, own
from sparsetrain.engine.state import RunState
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.gradient.handover import newcomer, scaled

LARGEST = 1 << 40  # bytes of a state that is taken from another rank
LENGTH = 8  # bytes of the length of a safetensors header


class CannotReunite(PeerLost):
    """The ranks' states do not fit together: this group will not come about, and only a checkpoint helps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a rank stands: steps at its last exchange (-1: it is new) and now; the step whose exchange has arrived and
    waits (-1: none) with its norm, else the norm of the last; whether masks have not followed the last exchange, and
    whether a copy from before they did is there; the last step whose row, evaluation and checkpoint are done; whether
    it has written the rows; out of how many ranks it comes."""

    __pydantic_config__ = STRICT
    boundary: int = -1
    step: int = 0
    arrived: int = -1
    norm: float | None = None
    masks_due: bool = False
    undo: bool = False
    recorded: int = 0
    writer: bool = False
    size: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the standings come to for one rank: whether it follows the exchange that arrived, with which norm; whether
    its masks go back to the copy; whether masks are still to follow; the first rank that has a state, the ranks that
    are new; up to which step nothing is recorded again, and whether who wrote that is gone; out of how many ranks the
    states come."""

    finish: bool
    norm: float
    undo: bool
    masks_due: bool
    source: int
    new: tuple[int, ...]
    recorded: int
    unsure: bool
    former: int


def say(standing: Standing, world: World) -> list[Standing]:
    """Return all ranks' standings. Collective. Raises CannotReunite for what is none."""
    parts = world.transport.gather_bytes(json.dumps(dataclasses.asdict(standing)).encode())
    try:
        return [adapter(Standing).validate_json(part, strict=True) for part in parts]
    except ValidationError as error:
        raise CannotReunite(f"a rank's standing cannot be read: {error.errors()[0]['msg']}") from error


def agree(standings: list[Standing], rank: int) -> Agreement | None:
    """Return what `rank` has to do, None where no rank has a state; all ranks come to the same from the same input.

    Raises CannotReunite where a rank is behind and has not everything that it would have to follow.
    """
    old = {r: standing for r, standing in enumerate(standings) if standing.boundary >= 0}
    if not old:
        return None
    front = max(standing.boundary for standing in old.values())
    behind = {r for r, standing in old.items() if standing.boundary < front}
    for r in behind:
        if old[r].arrived != front:
            raise CannotReunite(f"rank {r} is at step {old[r].boundary} without the exchange of step {front}")
    follow = behind or (set(old) if all(standing.arrived > front for standing in old.values()) else set())
    due = bool(follow) or any(standing.masks_due for standing in old.values())
    steps = {old[r].arrived if r in follow else old[r].step for r in old}
    recorded = [standing.recorded for standing in old.values()]
    norm = next((old[r].norm for r in sorted(set(old) - behind)), None)
    return Agreement(
        finish=rank in follow,
        norm=float("nan") if norm is None else norm,
        undo=due and rank in old and rank not in follow and old[rank].undo,
        masks_due=due,
        source=min(old),
        new=tuple(r for r in range(len(standings)) if r not in old),
        recorded=min(recorded) if len(steps) == 1 else max(recorded),
        unsure=not any(standing.writer for standing in old.values()),
        former=max(standing.size for standing in old.values()),
    )


def fit(pieces: Pieces, exchange: GradientExchange, agreement: Agreement, world: World, was: int) -> Pieces:
    """Return a survivor's pieces as those of its rank in the new `world`, where it `was` another."""
    groups = dict(pieces.groups)
    for group in ("residual", "optimizer", "local"):
        if own(group, was) in groups:
            groups[own(group, world.rank)] = groups.pop(own(group, was))
    kept = own("residual", world.rank)
    groups[kept] = scaled(exchange, groups[kept], world.size, agreement.former)
    if agreement.former != world.size:
        groups[kept] = {key: t for key, t in groups[kept].items() if not key.startswith("collective/")}
    return Pieces(dataclasses.replace(pieces.told, world_size=world.size), groups)


def give(pieces: Pieces | None, state: RunState | None, agreement: Agreement, world: World) -> Pieces:
    """Return this rank's pieces: its own, or for one that is new those of the source. Collective."""
    if not agreement.new:
        assert pieces is not None
        return pieces
    message = torch.empty(0, dtype=torch.uint8)
    if world.rank == agreement.source:
        assert pieces is not None and state is not None
        message = _packed(pieces, state)
    length = torch.tensor([message.numel()], dtype=torch.int64, device=world.transport.device)
    world.transport.broadcast(length, "control", agreement.source)
    if not 0 < int(length) < LARGEST:
        raise CannotReunite(f"a state of {int(length)} bytes")
    if world.rank != agreement.source:
        message = torch.empty(int(length), dtype=torch.uint8)
    message = message.to(world.transport.device)
    world.transport.broadcast(message, "control", agreement.source)
    if world.rank not in agreement.new:
        assert pieces is not None
        return pieces
    return _unpacked(bytes(message.cpu().numpy()), world.rank)


def _packed(pieces: Pieces, state: RunState) -> Tensor:
    """Return the state that a rank which is new begins with, as one message of bytes; of a rank's own groups it holds
    what the new one's are to be."""
    flat: Tensors = {}
    for group, tensors in pieces.groups.items():
        name, dot, _ = group.partition(".")
        if name == "local":
            continue
        if name == "residual":
            tensors = _joined(tensors, state)
        flat |= {f"{name}{dot}|{key}": tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    names = sorted({group.partition(".")[0] for group in pieces.groups} - {"local"})
    about = json.dumps(dataclasses.asdict(pieces.told))
    return torch.from_numpy(np.frombuffer(bytearray(pack(flat, {"about": about, "groups": " ".join(names)})), np.uint8))


def _joined(own: Tensors, state: RunState) -> Tensors:
    """Return a rank's own group for one that is new."""
    kept = {key: t for key, t in own.items() if not key.startswith((SCORES, RANDOM))}
    joined = newcomer(state.exchange, kept)
    if state.masks is not None:
        scores = {key.removeprefix(SCORES): t for key, t in own.items() if key.startswith(SCORES)}
        joined |= {f"{SCORES}{key}": t for key, t in state.masks.newcomer(scores).items()}
    return joined


def _unpacked(data: bytes, rank: int) -> Pieces:
    """Return the pieces of a message from another rank. Raises CannotReunite for what is none."""
    try:
        header = json.loads(data[LENGTH : LENGTH + int.from_bytes(data[:LENGTH], "little")])["__metadata__"]
        told = adapter(About).validate_json(header["about"], strict=True)
        groups: dict[str, Tensors] = {name: {} for name in header["groups"].split()}
        for key, tensor in load(data).items():
            group, _, name = key.partition("|")
            groups.setdefault(own(group[:-1], rank) if group.endswith(".") else group, {})[name] = tensor
    except (SafetensorError, ValidationError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise CannotReunite(f"the state from another rank cannot be read: {error}") from error
    return Pieces(told, groups, name="another rank's memory")
