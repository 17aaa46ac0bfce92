"""The way back into a run: the newest checkpoint that every rank can read."""

from __future__ import annotations

import json
from collections.abc import Callable

from sparsetrain.engine.checkpoint import CheckpointError, step_of
from sparsetrain.engine.keeping import Keeper
from sparsetrain.engine.pieces import restore
from sparsetrain.engine.state import RunState
from sparsetrain.engine.store import Store, Stored, StoreError


def resume(state: RunState, keeper: Keeper, log: Callable[[str], None], until: int | None = None) -> bool:
    """Restore the newest checkpoint that every rank can read, none of a step after `until`, and return whether there
    was one; rank 0 says which there are, and the keeper is told which are damaged.

    Raises CheckpointError when there are some and none can be read, or nobody knows whether there are any: to begin
    anew would be worse. Collective.
    """
    gather, store = state.world.transport.gather_bytes, keeper.store
    offered, trouble = json.loads(gather(_offer(state, store))[0])
    if trouble:
        raise CheckpointError(trouble)
    # What another rank says must not lead elsewhere.
    steps = {name: step for name in offered if (step := step_of(name)) is not None}
    found = [name for name, step in steps.items() if until is None or step <= until]
    for name in reversed(found):
        problem, lasting = "", True
        try:
            restore(state, Stored(store, name))
        except CheckpointError as error:
            problem, lasting = str(error), not isinstance(error, StoreError)
        answers = [json.loads(answer) for answer in gather(json.dumps([problem, lasting]).encode())]
        rank = next((rank for rank, (said, _) in enumerate(answers) if said), None)
        if rank is None:
            log(f"resumed from {name}")
            return True
        log(f"checkpoint {name} skipped, rank {rank}: {answers[rank][0]}")
        if any(said and lasts for said, lasts in answers):
            keeper.damaged.add(name)
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {store.name} is readable")
    return False


def drop_after(keeper: Keeper, step: int) -> None:
    """Remove the complete checkpoints of steps after `step`, which the run has gone back behind, but damaged ones.
    Rank 0 only. Raises OSError."""
    for name in keeper.store.complete():
        if (step_of(name) or 0) > step and name not in keeper.damaged:
            keeper.store.remove(name)


def _offer(state: RunState, store: Store) -> bytes:
    """Return the names of complete checkpoints and what went wrong, as rank 0 tells them."""
    if state.world.rank:
        return b""
    try:
        return json.dumps([store.complete(), ""]).encode()
    except OSError as error:
        return json.dumps([[], str(error)]).encode()
