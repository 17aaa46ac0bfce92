"""A process's part in a run: one rank in each group that the run has while workers come and go."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from sparsetrain.collective.connections import Connections
from sparsetrain.collective.mpi import MpiTransport
from sparsetrain.collective.transport import PeerLost
from sparsetrain.collective.world import World
from sparsetrain.config.cache import cache_folder
from sparsetrain.config.job import Job
from sparsetrain.worker.environment import Place
from sparsetrain.worker.main import pick_device, process_group, seed_all

WATCH = 0.5  # seconds between looks at how long a collective takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """How far a rank is: steps finished, seconds that it has waited in a collective (0: it waits in none), whether it
    has finished a step in its present group, and whether it wants to leave."""

    step: int
    waits_s: float
    moved: bool
    leaving: bool


class Session:
    """Trains as one rank after another; what it trained with stays here between two groups.

    `cut`, `ask` and `position` may be called from other threads while `run` is under way.
    """

    def __init__(
        self,
        job: Job,
        folder: pathlib.Path,
        log: Callable[[str], None],
        show: Callable[[dict[str, float]], None] | None = None,
        mpi: MpiTransport | None = None,
        saves: bool = False,
    ) -> None:
        from sparsetrain.engine.matmul import prefer_fast_matmul
        from sparsetrain.engine.memory import keep_freed_memory
        from sparsetrain.engine.rejoin import Surroundings

        self.job = job
        self.mpi = mpi
        self.saves = saves  # when it pauses: nobody will take this process into another group
        self.around = Surroundings(
            folder=folder, log=log, show=show, calibrations=cache_folder(os.environ) / "calibrations"
        )
        self.trainer: Any = None
        self.connections = Connections()
        self.asked = False  # to pause; also while the group is still being made
        self.leaving = False
        self.began_at = 0
        self.training = False
        if job.cluster.threads_per_worker:
            torch.set_num_threads(job.cluster.threads_per_worker)
        seed_all(job.seed)
        if job.cluster.gpus_per_worker <= 0:
            prefer_fast_matmul(log)
            keep_freed_memory()

    def run(self, place: Place, listener: socket.socket | None = None) -> dict[str, Any]:
        """Train as rank `place.rank` and return what the loop returns; every rank of the group must call this.

        `listener`, on rank 0, is a socket that is bound to the place's address and port already: nobody can take the
        port in between, and the store listens on that address only. Raises PeerLost when other ranks are lost: the
        state stays, and the next `run` goes on from it.
        """
        from sparsetrain.engine.rejoin import rejoin

        job = self.job
        device = pick_device(job, place)
        self.connections = connections = Connections()
        ended = threading.Event()
        with process_group(job, place, device, self.around.log, listener, connections, self.mpi) as transport:
            world = World(
                rank=place.rank,
                size=place.size,
                local_rank=place.local_rank,
                node=place.node,
                generation=place.generation,
                transport=transport,
            )
            former, self.trainer = self.trainer, None
            watch = threading.Thread(target=self._watch, args=(connections, ended), daemon=True)
            watch.start()
            try:
                trainer, resumes = rejoin(former, job, world, self.around)
                self.trainer, former = trainer, None
                self.began_at, self.training = trainer.state.step, True
                trainer.state.update.assent.ask(self.asked, self.leaving)
                result = trainer.run(resumes)
                if self.saves and result.get("paused"):
                    result = {**result, "saved": trainer.save()}
            except PeerLost:
                connections.cut()
                self.trainer = self.trainer or former
                if self.trainer is not None:
                    self.trainer.state.exchange.close()
                    self.trainer.saver.close()
                raise
            except BaseException as error:
                # Others shall not notice before whoever started this process knows why.
                if self.trainer is not None:
                    self.trainer.recorder.failed(error)
                raise
            finally:
                self.training = self.asked = False
                ended.set()
                watch.join()
            trainer.state.close()
            if result.get("paused"):
                return {**result, "leaving": self.leaving}
            trainer.recorder.close("finished")
            return result

    def attend(self, place: Place, listener: socket.socket | None = None) -> dict[str, Any]:
        """Do the same and return {"result": ...}, {"paused": ...}, or when other ranks are lost {"lost": ...}."""
        from sparsetrain.engine.reunion import CannotReunite

        try:
            result = self.run(place, listener)
            return {"paused": result} if "paused" in result else {"result": result}
        except CannotReunite as error:
            self.forget()
            told = {"message": str(error), "late": False, "hopeless": True}
        except PeerLost as error:
            message = self.connections.late or str(error).strip().split("\n")[0]
            told = {"message": message, "late": bool(self.connections.late), "hopeless": False}
        return {"lost": {**told, "at": time.time(), "step": self.position().step}}

    def close(self, status: str) -> None:
        """End the sinks: this process trains no more."""
        if self.trainer is not None:
            self.trainer.recorder.close(status)

    def forget(self) -> None:
        """Drop the state: the next `run` begins from a checkpoint."""
        self.close("failed")
        self.trainer = None

    def cut(self) -> None:
        """End a `run` that is under way: it raises PeerLost."""
        self.connections.cut()

    def ask(self, leave: bool = False) -> None:
        """Let all ranks return from `run` after the next exchange; `leave`: this one does not come back."""
        self.asked, self.leaving = True, self.leaving or leave
        if self.trainer is not None:
            self.trainer.state.update.assent.ask(True, self.leaving)

    def position(self) -> Position:
        """Return how far this rank is."""
        trainer = self.trainer
        step = trainer.state.step if trainer is not None else 0
        moved = self.training and step > self.began_at
        return Position(step=step, waits_s=self.connections.waiting(), moved=moved, leaving=self.leaving)

    def _watch(self, connections: Connections, ended: threading.Event) -> None:
        """Cut this rank off when it has waited in one collective for longer than the job allows."""
        cluster = self.job.cluster
        while not ended.wait(WATCH):
            trainer = self.trainer
            first = trainer is None or trainer.state.step <= self.began_at
            limit = max(cluster.first_timeout, cluster.collective_timeout) if first else cluster.collective_timeout
            if connections.waiting() > limit:
                step = trainer.state.step + 1 if trainer is not None else 0
                print(f"step {step}: a collective takes more than {limit:g} s; the stacks of all threads:", flush=True)
                with contextlib.suppress(Exception):
                    faulthandler.dump_traceback(2, all_threads=True)
                connections.late = f"waited for {limit:g} s in a collective of step {step}"
                connections.cut()
                return
