"""Faults that are done to a run's workers at random moments, the same for the same seed."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
import time
from collections.abc import Sequence

from sparsetrain.launch.ray_group import Member, signal_there
from sparsetrain.launch.supervisor import Supervisor

FAULTS = {
    "kill": "SIGKILL: the process is gone at once",
    "stop": "SIGSTOP: the process stands still and says nothing",
    "cut": "all its connections to other ranks are shut down",
    "slow": "SIGSTOP, and SIGCONT after a second or two",
    "leave": "SIGTERM: its machine is about to go",
}
PAUSE = 1.5  # seconds that `slow` lasts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One fault: what, after how many seconds of training, and to whom (a share of the ranks)."""

    kind: str
    at: float
    whom: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """A fault that was done: to which rank, and the step that the run had come to."""

    kind: str
    rank: int
    step: int

    def __str__(self) -> str:
        return f"{self.kind} rank {self.rank} at step {self.step}"


def plan(seed: int, run: int, kinds: Sequence[str], count: int, seconds: float) -> list[Planned]:
    """Return `count` faults of one run that takes so many seconds, in the order in which they happen."""
    draw = random.Random(f"{seed}/{run}")
    late = 0.95 * seconds
    faults = [Planned(kind=draw.choice(kinds), at=draw.uniform(0.0, late), whom=draw.random()) for _ in range(count)]
    return sorted(faults, key=lambda fault: fault.at)


def plan_every(seed: int, run: int, kinds: Sequence[str], every: float, most: int) -> list[Planned]:
    """Return a fault each `every` seconds, `most` of them."""
    draw = random.Random(f"{seed}/{run}")
    return [Planned(kind=draw.choice(kinds), at=every * (n + 1), whom=draw.random()) for n in range(most)]


class Monkey:
    """Does the planned faults to a supervisor's workers; `look` is called often."""

    def __init__(self, faults: Sequence[Planned]) -> None:
        self.faults = list(faults)
        self.supervisor: Supervisor | None = None
        self.began = 0.0
        self.done: list[Done] = []
        self.asleep: list[tuple[float, Member]] = []

    def look(self) -> None:
        """Do what is due. Training has begun when a step is finished."""
        supervisor, now = self.supervisor, time.monotonic()
        for until, member in list(self.asleep):
            if now >= until:
                self.asleep.remove((until, member))
                _signal(member, signal.SIGCONT)
        if supervisor is None or not supervisor.training:
            return
        self.began = self.began or now
        if self.faults and now - self.began >= self.faults[0].at:
            fault = self.faults.pop(0)
            member = supervisor.members[int(fault.whom * len(supervisor.members))]
            self.done.append(Done(kind=fault.kind, rank=member.rank, step=supervisor.step))
            self._do(fault.kind, member, supervisor)

    def _do(self, kind: str, member: Member, supervisor: Supervisor) -> None:
        if kind == "cut":
            supervisor.group.tell([member], "cut")
        elif kind == "slow":
            self.asleep.append((time.monotonic() + PAUSE, member))
            _signal(member, signal.SIGSTOP)
        else:
            _signal(member, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "leave": signal.SIGTERM}[kind])


def _signal(member: Member, number: int) -> None:
    with contextlib.suppress(Exception):  # it is gone already
        signal_there(member, number)
