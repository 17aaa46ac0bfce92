"""A run seen from outside: groups of ranks one after another, until one of them reaches the end.

When workers are lost, the others are told to give up waiting; they keep what they trained with, get company where the
cluster has it, and form the next group. A checkpoint is read only where no worker is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

from sparsetrain import registry
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.launch.failure import Failure, RunFailed, root_cause
from sparsetrain.launch.policy import FailurePolicy, Incident
from sparsetrain.launch.ray_group import ANSWER, Member, RayGroup, gone
from sparsetrain.launch.ray_pulse import Pulse
from sparsetrain.worker import record

POLL = 0.25  # seconds between looks at the workers
GRACE = 1.5  # seconds after a first exception in which others may tell the cause
ECHO_GRACE = 5.0  # the same, when the first one looks like a consequence
TOGETHER = 5.0  # seconds in which a run that could begin waits for the rest of its workers
NO_GROUP = {"message": "there was no group", "late": False, "hopeless": False}
GIVE_UP = 6.0  # seconds in which a rank that was cut off has to return


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where progress goes: a line of text, a row of metrics. `check` raises when the run shall stop; `leaves` returns
    why it shall save and leave, to go on later, empty where it shall not."""

    line: Callable[[str], None]
    row: Callable[[dict[str, Any]], None]
    check: Callable[[], None] = lambda: None
    leaves: Callable[[], str] = lambda: ""


@dataclasses.dataclass
class Outcome:
    """How one group ended: the result, or who failed, who lost others, who paused."""

    result: dict[str, Any] | None = None
    failures: list[Failure] = dataclasses.field(default_factory=list)
    lost: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    paused: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    began: float = 0.0  # on the clock, when trouble began

    @property
    def trouble(self) -> bool:
        """Return whether the group cannot go on."""
        return bool(self.failures or self.lost)


class Supervisor:
    """Forms groups of `group`'s workers for `job` until one ends; `order` gives ranks to members."""

    def __init__(
        self,
        job: Job,
        folder: pathlib.Path,
        group: RayGroup,
        progress: Progress,
        order: Callable[[list[Member]], list[Member]],
    ) -> None:
        self.job = job
        self.workers = job.cluster.workers
        self.folder = folder
        self.group = group
        self.progress = progress
        self.order = order
        self.policy = FailurePolicy(job.recovery)
        self.members: list[Member] = []
        self.waiting: list[Member] = []  # up, and in no group
        self.step = 0
        self.cause: Failure | None = None  # of the last loss
        self.training = False  # all ranks of the present group train
        self.incidents: list[dict[str, Any]] = []
        self.healing: dict[str, Any] = {}  # the last one, until a step is finished again

    def run(self) -> dict[str, Any]:
        """Return rank 0's result of the group that reaches the end, or that has saved and left ("paused",
        and "cause").

        Raises RunFailed with the root cause, JobError where that is a mistake of the user that only a rank could find.
        """
        self._gather(patience=TOGETHER)
        while True:
            outcome = self._attempt()
            if outcome.result is not None:
                return outcome.result
            if 0 in outcome.paused and not outcome.trouble and (cause := self.progress.leaves()):
                return {**outcome.paused[0], "cause": cause}
            self._heal(outcome)

    def _gather(self, patience: float = 0.0) -> None:
        """Take in who waits until there are enough; `patience`: seconds in which there may be more than enough.
        Raises JobError when they do not come in time."""
        limit = self.job.cluster.start_timeout
        began = time.monotonic()
        deadline = began + limit
        self.group.recruit()
        while True:
            self._welcome()
            room = self.workers.max - len(self.members)
            need = self.workers.max if time.monotonic() - began < patience else self.workers.min
            if len(self.members) + len(self.waiting) >= need:
                self.members += self.waiting[:room]
                self.waiting = self.waiting[room:]
                return
            self.progress.check()
            if time.monotonic() > deadline:
                up = len(self.members) + len(self.waiting)
                short = f"cluster.start_timeout: {up} of {need} workers were up after {limit:g} s"
                if self.cause is not None:
                    raise RunFailed(self.cause, f"{self.cause.line()} [{short}]")
                raise JobError(short)
            self.group.recruit()
            time.sleep(POLL / 5)

    def _welcome(self) -> None:
        """Note who has come up. Raises RunFailed where too many that are needed did not."""
        up, lost = self.group.ready()
        self.waiting += up
        for failure in lost if len(self.members) < self.workers.min else ():
            decision = self.policy.decide(Incident(failures=(failure,), step=self.step))
            if decision.action == "end":
                raise RunFailed(failure, decision.why)

    def _attempt(self) -> Outcome:
        """Let the members train as one group and return how that ends; all its calls have ended then."""
        self.members = self.order(self.members)
        record.placed(self.folder, [member.as_dict() for member in self.members])
        outcome = Outcome()
        try:
            calls = self.group.run(self.members)
        except Exception as error:  # rank 0 is gone before it could begin
            outcome.failures.append(gone(error, self.members[0].failure("")))
            outcome.lost = {member.rank: NO_GROUP for member in self.members[1:]}
            outcome.began = time.monotonic()
            return outcome
        pulse = Pulse(self.members, self.job.cluster)
        asked = False
        deadline = float("inf")
        while calls and time.monotonic() < deadline:
            self.progress.check()
            pulse.look(set(member.rank for member in calls.values()))
            self.step = max(self.step, pulse.step)
            self.training = pulse.moved and not outcome.trouble
            if self.training and self.healing:
                self._healed()
            outcome.failures += pulse.silent()
            for call, answer in self.group.answers(list(calls), POLL):
                self._take(calls.pop(call), answer, outcome)
            if outcome.trouble and not outcome.began:
                outcome.began = time.monotonic()
                self._explain(outcome, list(calls.values()), pulse)
                self.group.tell(list(calls.values()), "cut")
            if outcome.trouble:
                deadline = outcome.began + _patience(outcome)
            self._show()
            if not asked and not outcome.trouble and (self._may_leave() or self._may_grow()):
                asked = True
                self.group.tell(self.members[:1], "ask")
        for member in calls.values():
            if not any(failure.rank == member.rank for failure in outcome.failures):
                others = "".join(f"; rank {rank}: {lost['message']}" for rank, lost in sorted(outcome.lost.items())[:1])
                outcome.failures.append(member.failure(f"does not answer (stopped, or its host hangs){others}"))
        self.progress.check()  # who was told to end, and whose cluster ends as well, does not wait for its answers
        if not any(failure.rank == 0 and failure.kind == "died" for failure in outcome.failures):
            self._show(ANSWER)
        return outcome

    def _take(self, member: Member, answer: Any, outcome: Outcome) -> None:
        if isinstance(answer, Exception):
            outcome.failures.append(gone(answer, member.failure("")))
        elif "failure" in answer:
            outcome.failures.append(dataclasses.replace(member.failure(""), **answer["failure"]))
        elif "lost" in answer:
            outcome.lost[member.rank] = answer["lost"]
            self.step = max(self.step, answer["lost"]["step"])
        elif "paused" in answer:
            outcome.paused[member.rank] = answer["paused"]
            self.step = max(self.step, answer["paused"]["steps"])
        elif member.rank == 0:
            outcome.result = answer["result"]

    def _may_leave(self) -> bool:
        """Return whether the run shall leave; all members know then that they have to save."""
        return bool(self.progress.leaves()) and self.group.keep(self.members)

    def _may_grow(self) -> bool:
        """Return whether somebody waits whom the group has room for."""
        if len(self.members) >= self.workers.max:
            return False
        self.group.recruit()
        self._welcome()
        return bool(self.waiting)

    def _explain(self, outcome: Outcome, pending: list[Member], pulse: Pulse) -> None:
        """Where ranks waited too long, name the one that did not come, and write everybody's stacks."""
        if not any(lost["late"] for lost in outcome.lost.values()):
            return
        with contextlib.suppress(OSError):
            for rank, text in self.group.stacks(pending).items():
                (self.folder / "logs" / f"stacks.rank{rank:05d}.txt").write_text(text, encoding="utf-8")
        missing = pulse.behind(pending)
        if missing is not None:
            said = next(iter(outcome.lost.values()))["message"]
            outcome.failures.append(missing.failure(f"did not come: others {said} (stacks are in logs/)"))

    def _heal(self, outcome: Outcome) -> None:
        """Prepare the next group, or raise what ends the run."""
        self.progress.check()
        self.training = False
        failures = outcome.failures
        if not failures and outcome.lost:
            rank, lost = min(outcome.lost.items())
            echo = self.members[rank].failure(lost["message"])
            failures = [dataclasses.replace(echo, kind="error", type="PeerLost")]
        leaving = [m for m in self.members if outcome.paused.get(m.rank, {}).get("leaving")]
        decision = self.policy.decide(Incident(failures=tuple(failures), left=len(leaving), step=self.step))
        if failures and decision.action == "end":
            cause = root_cause(failures)
            if cause.kind == "job":
                raise JobError(cause.message)
            raise RunFailed(cause, decision.why)
        if decision.action == "end":
            raise RunFailed(leaving[0].failure("left"), decision.why)
        losses = failures or [member.failure("left") for member in leaving]
        self.cause = root_cause(losses) if losses else None
        dead = {failure.rank for failure in failures if failure.kind == "died"}
        for member in [m for m in self.members if m.rank in dead or m in leaving]:
            self.group.dismiss(member)
            self.members.remove(member)
        moves = registry.load("engine", self.job.engine.name).moves
        if not moves or (failures and not self.job.recovery.memory):
            for member in self.members:
                self.group.dismiss(member)
            self.members = []
        hopeless = any(lost["hopeless"] for lost in outcome.lost.values())
        if hopeless:
            self.group.tell(self.members, "forget")
        kept = len(self.members)
        if failures:
            self.progress.line(
                f"{decision.why}; {'no state is left' if hopeless or not kept else f'{kept} kept their state'}"
            )
        if decision.wait_s:
            self.progress.line(f"waiting {decision.wait_s:g} s (recovery.backoff)")
            self._pause(decision.wait_s)
        for member in self.members:
            member.was = member.rank
        self._gather()
        self.healing = {
            "at": time.time(),
            "cause": decision.why,
            "step": self.step,
            "lost": sorted(dead),
            "left": len(leaving),
            "workers": len(self.members),
            "from": "a checkpoint" if hopeless or not kept else "memory",
            "seconds": outcome.began or time.monotonic(),
        }

    def _healed(self) -> None:
        """Book the last incident: a step has been finished since."""
        row, self.healing = self.healing, {}
        row["seconds"] = round(time.monotonic() - row["seconds"], 2)
        said = f"{row['workers']} workers went on from {row['from']} at step {row['step']}"
        self.progress.line(f"{said}, {row['seconds']:.1f} s after {'the loss' if row['lost'] else 'the change'}")
        self.incidents.append(row)
        record.incident(self.folder, row)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.progress.check()
            time.sleep(min(POLL, left))

    def _show(self, patience: float = 0.0) -> None:
        lines, rows = self.group.news(self.members[0], patience)
        for line in lines:
            self.progress.line(line)
        for row in rows:
            self.progress.row(row)


def _patience(outcome: Outcome) -> float:
    """Return how long after the first sign of trouble the others may take."""
    raised = [failure for failure in outcome.failures if failure.kind != "died"]
    if raised:
        return ECHO_GRACE if all(failure.echo for failure in raised) else GRACE
    return GIVE_UP
