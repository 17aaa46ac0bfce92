"""Checkpoints that are written while training goes on: the training thread only copies, a thread of its own writes.

Each rank writes its part beside; who has written says so with its next word (see assent), and when all have, rank 0
renames the folder and marks it COMPLETE. A part that cannot be written, on a full disk say, leaves that checkpoint out
with a warning, and training goes on.

Workers that were cut off, or stopped, may come back when others have taken over: each group of ranks writes beside
under its own name, and only the newest one completes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import queue
import shutil
import threading
from collections.abc import Callable

from sparsetrain.collective.world import World
from sparsetrain.engine import checkpoint
from sparsetrain.engine.assent import Assent, Word
from sparsetrain.engine.pieces import Pieces, capture
from sparsetrain.engine.state import RunState

NEWEST = "generation"  # a file that names the newest group
SHARED = ("model", "masks", "outer", "optimizer")


class Saver:
    """Writes one rank's parts under `root`, in the order in which they come; `say` gets a line about a failure."""

    def __init__(self, root: pathlib.Path, keep: int, world: World, assent: Assent, say: Callable[[str], None]) -> None:
        self.root = root
        self.keep = keep
        self.world = world
        self.assent = assent
        self.say = say
        self.open: list[int] = []  # steps of this rank's parts that are not yet part of a checkpoint
        self.queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.busy = threading.Semaphore(1)
        if world.rank == 0:
            for left in root.glob("step_*.unfinished"):
                shutil.rmtree(left, ignore_errors=True)
            if world.generation:
                self._take_over()

    def save(self, pieces: Pieces, step: int) -> None:
        """Begin to write this rank's part of the checkpoint of `step`, after the one before."""
        # A store that is slower than training holds it up here, so that memory does not grow.
        self.busy.acquire()
        self.open.append(step)
        if self.world.rank:
            pieces = dataclasses.replace(pieces, groups={g: t for g, t in pieces.groups.items() if g not in SHARED})
        copied = pieces.copied()
        self._later(lambda: self._write(copied, step))

    def heard(self) -> None:
        """Complete on rank 0 what all ranks have said, with their last word, to have written."""
        if self.open and self.assent.words:
            self._complete(self.assent.words)

    def finish(self) -> None:
        """Return when everything is written and, where all ranks could, complete. Collective."""
        self.close()
        self._complete(self.assent.gather(float("nan")))
        self.close()
        self.world.transport.barrier()

    def close(self) -> None:
        """Wait until what was begun is written, and end the thread."""
        if self.thread is not None:
            self.queue.put(None)
            self.thread.join()
            self.thread = None

    def _complete(self, words: list[Word]) -> None:
        until, since = min(word.written for word in words), max(word.unwritten for word in words)
        decided = [step for step in self.open if step <= until]
        self.open = [step for step in self.open if step > until]
        if self.world.rank == 0:
            for step in decided:
                self._later(lambda step=step: self._publish(step) if step > since else self._drop(step))

    def _later(self, work: Callable[[], None]) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._main, name="sparsetrain-checkpoint", daemon=True)
            self.thread.start()
        self.queue.put(work)

    def _main(self) -> None:
        while (work := self.queue.get()) is not None:
            work()

    def _write(self, pieces: Pieces, step: int) -> None:
        folder = self._unfinished(step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for group, tensors in pieces.groups.items():
                checkpoint.write_tensors(folder / f"{group}.safetensors", tensors)
            if self.world.rank == 0:
                about = dataclasses.asdict(pieces.told)
                checkpoint.write_text(folder / "state.json", json.dumps(about, indent=1))
            self.assent.wrote(step)
        except OSError as error:
            self.say(f"checkpoint of step {step} is not written: {error}; training goes on, the next one is tried")
            self.assent.wrote(step, done=False)
        finally:
            self.busy.release()

    def _drop(self, step: int) -> None:
        shutil.rmtree(self._unfinished(step), ignore_errors=True)

    def _publish(self, step: int) -> None:
        folder = self._unfinished(step)
        if self._late():
            self.say(f"checkpoint of step {step} is not completed: another group of workers has taken over")
            self._drop(step)
            return
        try:
            checkpoint.publish(folder, checkpoint.folder_of(self.root, step), self.keep)
        except OSError as error:
            self.say(f"checkpoint of step {step} is not completed: {error}; training goes on, the next one is tried")

    def _unfinished(self, step: int) -> pathlib.Path:
        final = checkpoint.folder_of(self.root, step)
        own = f".{self.world.generation}" if self.world.generation else ""
        return final.with_name(f"{final.name}{own}.unfinished")

    def _take_over(self) -> None:
        with contextlib.suppress(OSError):  # then nothing can be saved there either, and that is said
            self.root.mkdir(parents=True, exist_ok=True)
            beside = self.root / f"{NEWEST}.{self.world.generation}"
            beside.write_text(self.world.generation, encoding="utf-8")
            beside.replace(self.root / NEWEST)

    def _late(self) -> bool:
        """Return whether another group has taken over since this one began."""
        try:
            newest = (self.root / NEWEST).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        return bool(self.world.generation) and newest != self.world.generation


def save(state: RunState, root: pathlib.Path, keep: int = 1) -> pathlib.Path:
    """Write a checkpoint under `root` and return its folder, when it is complete. Collective; falls on exchanges."""
    saver = Saver(root, keep, state.world, state.update.assent, lambda line: None)
    saver.save(capture(state), state.step)
    saver.finish()
    return checkpoint.folder_of(root, state.step)
