"""The checkpoints of a run for those who start runs or look after them; errors are JobErrors."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Generator
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_tree
from sparsetrain.worker.existing import first_difference, next_name, stored_tree


def refuse(job: Job, folder: pathlib.Path, fresh: bool) -> None:
    """Raise JobError where checkpoints behind the job's URL cannot be listed, or are not those of this run: of another
    job, or there though the run shall begin anew. Without a URL nothing is asked."""
    if job.checkpoint.url is None:
        return
    from sparsetrain.engine.checkpoint import CheckpointError
    from sparsetrain.engine.store import Stored, open_store

    with _asked():
        store = open_store(job, folder)
        names = store.complete()
    advice = f"give a new name (name={next_name(folder)}) or another URL, or remove them"
    if names and (fresh or not job.checkpoint.resume):
        how = "--fresh" if fresh else "checkpoint.resume: is false"
        raise JobError(f"{how}: {store.name} holds {len(names)} checkpoints: {advice}")
    if stored_tree(folder) is not None:
        return  # it has been compared
    for name in reversed(names):
        with contextlib.suppress(CheckpointError, ValueError):
            tree = Stored(store, name).job()
            difference = first_difference(tree, to_tree(job)) if tree else None
            if difference:
                raise JobError(f"{difference}; {store.name} holds checkpoints of another job: {advice}")
            return


def rows(job: Job, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return what `engine.inspection.rows` says."""
    from sparsetrain.engine.inspection import rows as found
    from sparsetrain.engine.store import open_store

    with _asked():
        return found(open_store(job, folder))


def problems(job: Job, folder: pathlib.Path) -> dict[str, list[str]]:
    """Return what is wrong with each complete checkpoint, by name; see `engine.inspection.problems`."""
    from sparsetrain.engine.inspection import problems as found
    from sparsetrain.engine.store import open_store

    with _asked():
        store = open_store(job, folder)
        return {name: found(store, name) for name in store.complete()}


def prune(
    job: Job, folder: pathlib.Path, keep: int | None, best: int | None, dry: bool, say: Callable[[str], None]
) -> list[str]:
    """Remove all complete checkpoints but the newest `keep` and the `best` of lowest loss (None: as the job says), and
    return which; a damaged one stays, does not count, and `say` gets a line about it. `dry`: only return them."""
    from sparsetrain.engine.keeping import Keeper
    from sparsetrain.engine.store import open_store

    rules = job.checkpoint
    with _asked():
        store = open_store(job, folder)
        keeper = Keeper(store, rules.keep if keep is None else keep, rules.best if best is None else best, say)
        keeper.look()
        return keeper.prune(dry, contents=False)


@contextlib.contextmanager
def _asked() -> Generator[None]:
    """Turn what a store cannot do into a JobError."""
    try:
        yield
    except OSError as error:
        raise JobError(f"checkpoints: {error}") from error
