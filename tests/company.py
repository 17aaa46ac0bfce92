"""Real processes that train as ranks of one run, are killed, and are replaced: what Ray does, without Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import os
import pathlib
import signal
import socket
import threading
import time
from typing import Any

import torch
from small import job

from sparsetrain.collective.transport import PeerLost
from sparsetrain.collective.world import World
from sparsetrain.engine import trainer as trainer_module
from sparsetrain.engine.assent import Assent
from sparsetrain.engine.trainer import Trainer
from sparsetrain.gradient import handover
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.masks.controller import MaskController
from sparsetrain.track.sink import Tracker
from sparsetrain.worker.environment import Place
from sparsetrain.worker.session import Session

# Where a worker can be hit: the method before or after which it happens.
POINTS = {
    "forward": (Trainer, "_forward_backward", "before"),
    "backward": (Trainer, "_forward_backward", "after"),
    "exchange": (GradientExchange, "_select", "after"),
    "arrived": (GradientExchange, "prepare", "after"),
    "word": (Assent, "gather", "after"),
    "masks": (MaskController, "step", "before"),
    "agreed": (MaskController, "_agreed", "after"),
    "changed": (MaskController, "step", "after"),
    "evaluate": (Trainer, "_evaluate", "before"),
    "record": (Trainer, "_record", "before"),
    "recorded": (Trainer, "_record", "after"),
    "write": (Tracker, "log", "before"),
    "end": (Trainer, "run", "after"),
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """At `point` of the step that follows `step` finished ones (of masks and later points: that `step` finishes), die,
    or believe that others have."""

    point: str
    step: int
    dies: bool = True


def arm(session: Session, fault: Fault) -> None:
    """Let the fault happen once, in this process."""
    cls, name, when = POINTS[fault.point]
    original = getattr(cls, name)
    done = threading.Event()

    def hit() -> None:
        trainer = session.trainer
        if trainer is None or trainer.state.step != fault.step or done.is_set():
            return
        done.set()
        if fault.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        raise PeerLost("as if another had gone")

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            hit()
        result = original(*arguments, **options)
        if when == "after":
            hit()
        return result

    setattr(cls, name, wrapped)


def note_residuals() -> None:
    """Let every trainer keep what its rank owed when its group began to train (`opened`) and when it was about to hand
    over (`closed`)."""
    opened, handed = Trainer._open, trainer_module.hand_over

    def opening(trainer: Trainer) -> None:
        opened(trainer)
        trainer.opened = owed(trainer.state.exchange)

    def handing(exchange: GradientExchange, world: World, leaving: list[int]) -> None:
        exchange.closed = owed(exchange)
        handed(exchange, world, leaving)

    Trainer._open, trainer_module.hand_over = opening, handing


def count_steps(counter: Any) -> None:
    """Show the parent how far this process is."""
    stepped = Trainer.stepped

    def stepping(trainer: Trainer, updated: Any) -> None:
        stepped(trainer, updated)
        counter.value = trainer.state.step

    Trainer.stepped = stepping


def owed(exchange: GradientExchange) -> torch.Tensor:
    """Return what a rank owes to the mean, flat."""
    kept = handover.owed(exchange, exchange.state())
    return torch.cat([kept[key].reshape(-1) for key in sorted(kept)] or [torch.zeros(0)])


def _live(pipe: Any, counter: Any, overrides: tuple[str, ...], folder: str, fault: Fault | None) -> None:
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    note_residuals()
    count_steps(counter)
    session = Session(job(*overrides), pathlib.Path(folder), lambda line: None)
    if fault is not None:
        arm(session, fault)
    running: threading.Thread | None = None

    def run(place: Place) -> None:
        try:
            pipe.send(("result", session.run(place)))
        except PeerLost as error:
            pipe.send(("lost", str(error)))
        except BaseException as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))

    while True:
        word, value = pipe.recv()
        if word == "run":
            running = threading.Thread(target=run, args=(value,))
            running.start()
        elif word == "ask":
            session.ask(value)
        elif word == "cut":
            session.cut()
        elif word == "look":
            pipe.send(("state", value(session.trainer)))
        elif word == "end":
            if running is not None:
                running.join()
            return


class Company:
    """Members by number; `group` lets some of them train together and returns what each says when it has ended."""

    def __init__(self, folder: pathlib.Path, *overrides: str) -> None:
        self.folder = folder
        self.overrides = overrides
        self.context = multiprocessing.get_context("forkserver")
        self.processes: dict[int, Any] = {}
        self.pipes: dict[int, Any] = {}
        self.steps: dict[int, Any] = {}

    def __enter__(self) -> Company:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()

    def hire(self, number: int, fault: Fault | None = None) -> None:
        """Start a member."""
        here, there = self.context.Pipe()
        self.steps[number] = self.context.Value("i", 0)
        arguments = (there, self.steps[number], self.overrides, str(self.folder), fault)
        self.processes[number] = self.context.Process(target=_live, args=arguments, daemon=True)
        self.processes[number].start()
        there.close()
        self.pipes[number] = here

    def begin(self, *members: int) -> None:
        """Let the members train as ranks 0, 1, ... in this order."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank, number in enumerate(members):
            place = Place(rank=rank, size=len(members), local_rank=rank, master_port=port if len(members) > 1 else 0)
            self.pipes[number].send(("run", place))

    def end(self, *members: int, seconds: float = 60) -> dict[int, tuple[str, Any]]:
        """Return what each member says; when one is dead or has lost others, all others are cut off."""
        said: dict[int, tuple[str, Any]] = {}
        deadline = time.monotonic() + seconds
        cut = False
        while len(said) < len(members):
            assert time.monotonic() < deadline, f"nothing from {set(members) - set(said)}; {said}"
            for number in set(members) - set(said):
                try:
                    if self.pipes[number].poll(0.02):
                        said[number] = self.pipes[number].recv()
                except (EOFError, OSError):
                    said[number] = ("dead", None)
            if not cut and any(word != "result" for word, _ in said.values()):
                cut = True
                for number in set(members) - set(said):
                    with contextlib.suppress(OSError):
                        self.pipes[number].send(("cut", None))
        return said

    def group(self, *members: int, seconds: float = 60) -> dict[int, tuple[str, Any]]:
        """Begin and end."""
        self.begin(*members)
        return self.end(*members, seconds=seconds)

    def reach(self, number: int, step: int) -> None:
        """Return when a member has finished `step` steps."""
        deadline = time.monotonic() + 60
        while self.steps[number].value < step:
            assert time.monotonic() < deadline and self.processes[number].is_alive()
            time.sleep(0.01)

    def ask(self, number: int, leave: bool = False) -> None:
        """Let a member ask for another group, or leave."""
        self.pipes[number].send(("ask", leave))

    def look(self, number: int, what: Any) -> Any:
        """Return `what(trainer)` of a member that is in no group."""
        self.pipes[number].send(("look", what))
        word, value = self.pipes[number].recv()
        assert word == "state"
        return value
