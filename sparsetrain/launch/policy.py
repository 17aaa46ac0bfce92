"""What to do when workers are lost: go on, after which pause, or end the run."""

from __future__ import annotations

import dataclasses
from typing import Literal

from sparsetrain.config.job import Recovery
from sparsetrain.launch.failure import Failure, account, root_cause

STUBBORN = 3  # losses in a row without a step between them: the next would not be another


@dataclasses.dataclass(frozen=True, kw_only=True)
class Incident:
    """What ended a group of ranks: workers that failed, how many left after an announcement, the step that the run had
    come to."""

    failures: tuple[Failure, ...] = ()
    left: int = 0
    step: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailureDecision:
    """Whether the run goes on, after how many seconds, and why, in words."""

    action: Literal["recover", "end"]
    why: str
    wait_s: float = 0.0


class FailurePolicy:
    """Counts what a run has lost against its budgets, one for crashes and one for announced ends."""

    def __init__(self, config: Recovery) -> None:
        self.config = config
        self.crashes = 0
        self.preemptions = 0
        self.row = 0  # crashes in a row, without `calm` steps between them
        self.stuck = 0  # the same, without any step between them
        self.step = -1

    def decide(self, incident: Incident) -> FailureDecision:
        """Return what to do about `incident`, and count it."""
        self.preemptions += incident.left
        if self.preemptions > self.config.preemptions:
            return FailureDecision(
                action="end", why=f"more than {self.config.preemptions} workers have left (recovery.preemptions)"
            )
        if not incident.failures:
            return FailureDecision(
                action="recover", why=f"{incident.left} left" if incident.left else "others have come"
            )
        cause = root_cause(list(incident.failures))
        told = account(list(incident.failures))
        died = [failure for failure in incident.failures if failure.kind == "died"]
        if not died and not cause.echo:
            return FailureDecision(action="end", why=told)  # an exception would come again
        self.crashes += max(1, len(died))
        self.row = 1 if incident.step >= self.step + self.config.calm or self.step < 0 else self.row + 1
        self.stuck = 1 if incident.step > self.step else self.stuck + 1
        self.step = incident.step
        if self.crashes > self.config.crashes:
            return FailureDecision(
                action="end", why=f"{told} [{self.crashes} lost, recovery.crashes allows {self.config.crashes}]"
            )
        if self.stuck >= STUBBORN:
            return FailureDecision(action="end", why=f"{told} [{self.stuck} times without a step between]")
        return FailureDecision(action="recover", why=told, wait_s=self._wait())

    def _wait(self) -> float:
        if self.row < 2:
            return 0.0
        return min(self.config.backoff_limit, self.config.backoff * 2.0 ** min(self.row - 2, 30))
