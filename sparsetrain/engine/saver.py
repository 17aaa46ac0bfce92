"""Checkpoints that are written while training goes on: the training thread only copies, a thread of its own writes.

Each rank puts its files into the store; what has become of its oldest one that is open it says with its next word (see
assent). When all have said so, rank 0 publishes the checkpoint, or drops it where a rank could not write: on a full
disk say, or to a store that does not answer. That is a warning; training goes on, and the next checkpoint is tried.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import queue
import threading
import time
from collections.abc import Callable

import torch

from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_tree
from sparsetrain.engine import checkpoint
from sparsetrain.engine.assent import Assent, Word
from sparsetrain.engine.fence import Fence
from sparsetrain.engine.keeping import Keeper
from sparsetrain.engine.local_store import LocalStore
from sparsetrain.engine.pieces import Pieces, capture
from sparsetrain.engine.state import RunState
from sparsetrain.engine.store import Part, Store

SHARED = ("model", "masks", "outer", "optimizer")


class Unsaved(RuntimeError):
    """A run has come to its end, and what it has learned is nowhere."""


class Saver:
    """Writes one rank's parts, in the order in which they come; `say` gets a line about a failure."""

    def __init__(
        self,
        store: Store,
        job: Job,
        world: World,
        assent: Assent,
        say: Callable[[str], None],
        fence: Fence | None = None,
    ) -> None:
        self.store = store
        self.fence = fence
        self.job = job
        self.rules = job.checkpoint
        self.world = world
        self.assent = assent
        self.say = say
        # Training waits so long for a slow store at most; other ranks wait in a collective meanwhile.
        self.patience = job.cluster.collective_timeout / 3
        self.keeper = Keeper(store, job.checkpoint.keep, job.checkpoint.best, say)
        self.last = -1  # the newest step that was given to `save`
        self.complete = -1  # on rank 0, the newest step whose checkpoint is whole
        self.open: list[int] = []  # steps, the same on all ranks, of which it is not yet known what becomes of them
        self.outcomes: dict[int, bool] = {}  # of steps that are open: whether this rank's part is written
        self.news = threading.Condition()  # guards the outcomes and the number of works under way
        self.under_way = 0
        self.queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.busy = threading.Semaphore(1)
        self.alone = False  # whether it has been said that other ranks write elsewhere

    def save(self, pieces: Pieces, step: int, loss: float | None = None) -> None:
        """Begin to write this rank's part of the checkpoint of `step`; `loss` is that of an evaluation at that step."""
        self.last = step
        with self.news:
            self.open.append(step)
        # A store that is slower than training holds it up here, so that memory does not grow, but not for ever.
        if not self.busy.acquire(timeout=self.patience):
            self._failed(step, f"the one before is still being written after {self.patience:g} s more")
            return
        loss = loss if loss is not None and math.isfinite(loss) else None
        pieces = dataclasses.replace(pieces, told=dataclasses.replace(pieces.told, eval_loss=loss))
        if self.world.rank:
            own = {group: tensors for group, tensors in pieces.groups.items() if group not in SHARED}
            pieces = dataclasses.replace(pieces, groups=own, weights={})
        copied = pieces.copied()
        self._later(lambda: self._write(copied, step))

    def lacks(self, step: int) -> bool:
        """Return whether the checkpoint of a step is neither begun here nor complete: the group that began it may have
        ended before. Collective."""
        return self.last != step and not self._holds(step)

    def end(self, pieces: Callable[[], Pieces], step: int) -> None:
        """Write the checkpoint of the last step once more where it is not complete: it has failed, or has gone with a
        group before. Collective, behind `finish`. Raises Unsaved where it cannot be written."""
        if self._holds(step):
            return
        self.save(pieces(), step)
        self.finish()
        if not self._holds(step):
            raise Unsaved(
                f"the last checkpoint, of step {step}, cannot be written; what follows the one before is lost"
            )

    def heard(self) -> None:
        """Go on with what all ranks have said with their last word: rank 0 completes what all have written."""
        if self.open and self.assent.words:
            self._decide(self.assent.words)

    def finish(self) -> None:
        """Return when everything is written and, where all ranks could, complete. Collective.

        A rank that needs long lets the others know, again and again, that it is there; one that needs longer than
        `checkpoint.timeout` gives up.
        """
        ends = time.monotonic() + self.rules.timeout
        while self.open:
            with self.news:
                self.news.wait_for(self._said, self.patience)
            if not self._said() and time.monotonic() > ends:
                self._failed(self.open[0], f"it takes longer than {self.rules.timeout:g} s (checkpoint.timeout)")
            self._decide(self.assent.gather(float("nan")))
        ends = time.monotonic() + self.rules.timeout
        while not self._all_done(self._done_within(self.patience) or time.monotonic() > ends):
            pass
        self.close()
        self.assent.wrote(-1, done=False)  # the run may go back behind what it has said

    def close(self) -> None:
        """End the thread, when it has done what was begun; one that the store holds up is left to itself."""
        if self.thread is not None:
            self.queue.put(None)
            self.thread.join(self.patience)
            self.thread = None

    def _holds(self, step: int) -> bool:
        try:
            there = self.world.rank > 0 or checkpoint.name_of(step) in self.store.complete()
        except OSError:
            there = False
        return self._all_done(there)

    def _decide(self, words: list[Word]) -> None:
        step = self.open[0]
        if min(word.written for word in words) < step:
            return
        with self.news:
            self.open.pop(0)
            self._tell()
        if self.world.rank == 0:
            lost = max(word.unwritten for word in words) >= step
            self._later(lambda: self._drop(step) if lost else self._publish(step))

    def _said(self) -> bool:
        """Return whether this rank has said what became of its oldest part that is open."""
        return self.assent.own.written >= self.open[0]

    def _tell(self, step: int | None = None, done: bool = True) -> None:
        """Note what became of a step's part, and say what is known of the oldest one that is open."""
        with self.news:
            if step is not None:
                self.outcomes.setdefault(step, done)
            if self.open and self.open[0] in self.outcomes:
                # One at a time: a word has room for the newest step only.
                self.assent.wrote(self.open[0], self.outcomes.pop(self.open[0]))
            self.news.notify_all()

    def _failed(self, step: int, why: object) -> None:
        self.say(f"checkpoint of step {step} is not written: {why}{self._consequence(step)}")
        self._tell(step, done=False)

    def _consequence(self, step: int) -> str:
        return "; training goes on, the next one is tried" if step < self.job.train.steps else ""

    def _done_within(self, seconds: float) -> bool:
        with self.news:
            return self.news.wait_for(lambda: not self.under_way, seconds)

    def _all_done(self, own: bool) -> bool:
        flag = torch.tensor([own], dtype=torch.uint8, device=self.world.transport.device)
        return all(bool(part.item()) for part in self.world.transport.all_gather(flag, "control"))

    def _later(self, work: Callable[[], None]) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._main, name="sparsetrain-checkpoint", daemon=True)
            self.thread.start()
        with self.news:
            self.under_way += 1
        self.queue.put(work)

    def _main(self) -> None:
        while (work := self.queue.get()) is not None:
            work()
            with self.news:
                self.under_way -= 1
                self.news.notify_all()

    def _write(self, pieces: Pieces, step: int) -> None:
        try:
            self._put(pieces.digested(), checkpoint.name_of(step))
            self._tell(step)
        except Exception as error:  # else nobody would hear of it before the end
            self._failed(step, error if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        finally:
            self.busy.release()

    def _put(self, pieces: Pieces, name: str) -> None:
        """Put this rank's files, and last a list of them."""
        rank, parts = self.world.rank, {}
        texts = {}
        if rank == 0:
            texts["state.json"] = json.dumps(dataclasses.asdict(pieces.told), indent=1)
            texts["job.json"] = json.dumps(to_tree(self.job), indent=1)
        files = [*(f"{group}.safetensors" for group in pieces.groups), *texts, _list(rank)]
        self.store.begin(name, rank, files)
        for group, tensors in pieces.groups.items():
            file = f"{group}.safetensors"
            parts[file] = self.store.put(name, file, lambda path, t=tensors: checkpoint.write_tensors(path, t))
        for file, text in texts.items():
            parts[file] = self.store.put(name, file, lambda path, t=text: checkpoint.write_text(path, t))
        listed = json.dumps({file: dataclasses.astuple(part) for file, part in parts.items()}, indent=1)
        self.store.put(name, _list(rank), lambda path: checkpoint.write_text(path, listed))

    def _drop(self, step: int) -> None:
        try:
            self.store.drop(checkpoint.name_of(step))
        except OSError as error:
            self.say(f"what is there of the checkpoint of step {step} is not removed: {error}")

    def _publish(self, step: int) -> None:
        name, parts = checkpoint.name_of(step), {}
        if self.fence is not None and self.fence.late():
            self.say(f"checkpoint of step {step} is not completed: another group of workers has taken over")
            return
        try:
            for rank in range(self.world.size):
                text = self.store.peek(name, _list(rank))
                if text is None and not self.alone:
                    self.alone = True
                    self.say(
                        f"checkpoints in {self.store.name} lack rank {rank}'s parts: it writes elsewhere; "
                        "checkpoint.url takes a place that all ranks see"
                    )
                if text is not None:
                    parts |= {file: Part(*told) for file, told in json.loads(text).items()}
            self.store.publish(name, parts)
        except (OSError, ValueError) as error:
            self.say(f"checkpoint of step {step} is not completed: {error}{self._consequence(step)}")
            self._drop(step)  # on a full disk the next one wants its room
            return
        self.complete = step
        # One that was damaged has been written anew.
        self.keeper.damaged.discard(name)
        self.keeper.losses.pop(name, None)
        try:
            self.keeper.prune(contents=self.store.near)
        except OSError as error:
            self.say(f"older checkpoints are not removed: {error}")


def _list(rank: int) -> str:
    return f"parts.rank{rank:05d}.json"


def save(state: RunState, root: pathlib.Path, keep: int = 1) -> pathlib.Path:
    """Write a checkpoint under `root` and return its folder, when it is complete. Collective; falls on exchanges."""
    rules = dataclasses.replace(state.job.checkpoint, keep=keep, best=0)
    job = dataclasses.replace(state.job, checkpoint=rules)
    saver = Saver(LocalStore(root), job, state.world, state.update.assent, lambda line: None)
    saver.save(capture(state), state.step)
    saver.finish()
    return root / checkpoint.name_of(state.step)
