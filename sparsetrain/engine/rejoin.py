"""A rank's way into a new group: with the state that it holds, with that of another rank, or from the beginning."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

import torch

from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.engine.checkpoint import CheckpointError
from sparsetrain.engine.pieces import Pieces, capture, go_local, restore
from sparsetrain.engine.reunion import Agreement, CannotReunite, Standing, agree, fit, give, say
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.gradient.handover import reconcile
from sparsetrain.track.jsonl import parsed, tail
from sparsetrain.track.sink import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a trainer is given beside job and world; see engine.trainer.train."""

    folder: pathlib.Path
    log: Callable[[str], None]
    show: Callable[[Row], None] | None = None
    calibrations: pathlib.Path | None = None


def rejoin(former: Trainer | None, job: Job, world: World, around: Surroundings) -> tuple[Trainer, bool]:
    """Return the trainer of this rank in `world`, and whether it still has to look for a checkpoint.

    `former` is what this process trained with in the group before, whose threads have ended; None: it is new. Every
    rank must call it. Raises CannotReunite where memory does not hold one state.
    """
    agreement = agree(say(standing(former), world), world.rank)
    pieces = None
    if agreement is not None:
        if former is not None:
            pieces = fit(settled(former, agreement), former.state.exchange, agreement, world, former.world.rank)
        pieces = give(pieces, former.state if former is not None else None, agreement, world)
    state = build(job, world, around.calibrations, former.state.data if former is not None else None)
    trainer = Trainer(state, around.folder, around.log, around.show, recovers=state.engine.moves)
    if former is not None:
        trainer.recorder.take_over(former.recorder)
    if agreement is None or pieces is None:
        return trainer, True
    try:
        restore(state, pieces)
    except CheckpointError as error:
        raise CannotReunite(f"the state in memory does not fit: {error}") from error
    if agreement.new or agreement.former != world.size:
        reconcile(state.exchange, world)
    trainer.check_replicas()
    go_local(state, pieces)
    _tell(trainer, agreement)
    state.masks_due = agreement.masks_due and state.masks is not None
    trainer.recorded = agreement.recorded
    if agreement.unsure:
        _make_up(trainer)
    if former is not None:
        trainer.skipped = former.skipped
    return trainer, False


def _make_up(trainer: Trainer) -> None:
    """Let rank 0 write the last row where a rank 0 that is gone has taken it along: others have it, and may be past the
    step. Collective."""
    said = trainer.world.transport.gather_bytes(json.dumps(trainer.recorder.last).encode())
    if trainer.world.rank == 0:
        rows = tail(trainer.folder / "metrics.jsonl", 1)
        written = rows[-1]["train/step"] if rows else 0
        held = [row for part in said if (row := parsed(part)) and written < row["train/step"] <= trainer.recorded]
        trainer.owed = held[0] if held else {}


def _tell(trainer: Trainer, agreement: Agreement) -> None:
    """Book what died with ranks: their residuals, of which only those of the others tell how large they were."""
    world = trainer.world
    lost = agreement.former - (world.size - len(agreement.new))
    if world.rank == 0 and lost > 0:
        norm = trainer.state.exchange.residual_norm()
        trainer.log(f"{lost} of {agreement.former} residuals are gone; this rank's has a norm of {norm:.3g}")


def standing(former: Trainer | None) -> Standing:
    """Return what a rank says of itself."""
    if former is None:
        return Standing()
    state, arrived = former.state, former.state.update.arrived
    norm = former.norm if arrived is None else arrived.norm
    return Standing(
        boundary=state.boundary.step,
        step=state.step,
        arrived=-1 if arrived is None else arrived.step,
        norm=norm if math.isfinite(norm) else None,
        masks_due=state.masks_due,
        undo=former.undo is not None,
        recorded=former.recorded,
        writer=former.world.rank == 0,
        size=former.world.size,
    )


def settled(former: Trainer, agreement: Agreement) -> Pieces:
    """Return this rank's state at the boundary that all agreed on."""
    if agreement.finish:
        former.stepped(former.state.update.finish(agreement.norm))
    elif former.before is not None:
        # The step is done again: with the same draws, and scores that have not seen it.
        generator, scores = former.before
        torch.set_rng_state(generator)
        if former.state.masks is not None:
            former.state.masks.load_rank_state(scores)
    if agreement.undo:
        assert former.undo is not None
        return former.undo
    return capture(former.state)
