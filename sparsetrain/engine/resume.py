"""The way back into a run: the newest checkpoint that every rank can read."""

from __future__ import annotations

import json
from collections.abc import Callable

from sparsetrain.engine.checkpoint import CheckpointError
from sparsetrain.engine.pieces import restore
from sparsetrain.engine.state import RunState
from sparsetrain.engine.store import Store, Stored, StoreError


def resume(state: RunState, store: Store, log: Callable[[str], None]) -> set[str]:
    """Restore the newest checkpoint that every rank can read, where there are any; rank 0 says which there are.

    Return those that turned out damaged. Raises CheckpointError when none can be read, or nobody knows whether there
    are any: to begin anew would be worse. Collective.
    """
    gather = state.world.transport.gather_bytes
    found, trouble = json.loads(gather(_offer(state, store))[0])
    if trouble:
        raise CheckpointError(trouble)
    damaged: set[str] = set()
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
            return damaged
        log(f"checkpoint {name} skipped, rank {rank}: {answers[rank][0]}")
        if any(said and lasts for said, lasts in answers):
            damaged.add(name)
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {store.name} is readable")
    return damaged


def _offer(state: RunState, store: Store) -> bytes:
    """Return the names of complete checkpoints and what went wrong, as rank 0 tells them."""
    if state.world.rank:
        return b""
    try:
        return json.dumps([store.complete(), ""]).encode()
    except OSError as error:
        return json.dumps([[], str(error)]).encode()
