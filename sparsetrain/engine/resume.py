"""Going on from a checkpoint: the newest one that every rank can read."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from sparsetrain.engine import checkpoint
from sparsetrain.engine.pieces import Saved, restore
from sparsetrain.engine.state import RunState


def resume(state: RunState, root: pathlib.Path, log: Callable[[str], None], until: int | None = None) -> bool:
    """Restore the newest checkpoint under `root` that every rank can read, none of a step after `until`, and return
    whether there was one; rank 0 says which there are. Collective. Raises CheckpointError where there are some and
    none is readable."""
    transport = state.world.transport
    last = None if until is None else checkpoint.folder_of(root, until)
    own = " ".join(folder.name for folder in checkpoint.complete(root) if last is None or folder <= last)
    found = checkpoint.names_of(transport.gather_bytes(own.encode())[0])
    for name in reversed(found):
        problem = ""
        try:
            restore(state, Saved(root / name))
        except checkpoint.CheckpointError as error:
            problem = str(error)
        told = transport.gather_bytes(problem.encode(errors="replace"))
        problems = [said.decode(errors="replace") for said in told]
        if not any(problems):
            log(f"resumed from {name}")
            return True
        rank = next(rank for rank, said in enumerate(problems) if said)
        log(f"checkpoint {name} skipped, rank {rank}: {problems[rank]}")
    if found:
        raise checkpoint.CheckpointError(f"none of the {len(found)} checkpoints in {root} is readable")
    return False


def drop_after(root: pathlib.Path, step: int) -> None:
    """Remove the complete checkpoints of steps after `step`, which the run has gone back behind. Rank 0 only."""
    for folder in checkpoint.complete(root):
        if folder > checkpoint.folder_of(root, step):
            checkpoint.remove(folder)
