"""Signs of life: a stopped process or host answers nothing and raises nothing, so every rank is asked now and then."""

from __future__ import annotations

import time

from sparsetrain.config.job import Cluster
from sparsetrain.launch.failure import Failure
from sparsetrain.launch.ray_group import Member
from sparsetrain.worker.session import Position

PULSE = 1.0  # seconds between questions
FIRST = 0.2  # the same, until the group has finished a step


class Pulse:
    """Asks every member for its Position."""

    def __init__(self, members: list[Member], cluster: Cluster) -> None:
        import ray

        self.ray = ray
        self.limit = cluster.collective_timeout
        self.members = {member.rank: member for member in members}
        self.asked = {member.rank: (member.actor.alive.remote(), time.monotonic()) for member in members}
        self.positions: dict[int, Position] = {}

    @property
    def step(self) -> int:
        """Return the most steps that a rank has finished."""
        return max((place.step for place in self.positions.values()), default=0)

    @property
    def moved(self) -> bool:
        """Return whether the group has finished a step."""
        return any(place.moved for place in self.positions.values())

    def look(self, ranks: set[int]) -> None:
        """Take the answers of `ranks` that are there, and ask again."""
        now = time.monotonic()
        for rank in ranks & set(self.asked):
            call, at = self.asked[rank]
            if now - at > (PULSE if self.moved else FIRST) and self.ray.wait([call], timeout=0)[0]:
                try:
                    place = self.ray.get(call)
                except self.ray.exceptions.RayError:
                    continue  # its run tells
                if place is not None:
                    self.positions[rank] = place
                self.asked[rank] = (self.members[rank].actor.alive.remote(), now)
        for rank in set(self.asked) - ranks:
            del self.asked[rank]

    def silent(self) -> list[Failure]:
        """Return a failure for each rank that has not answered for as long as a collective may take, once."""
        found = []
        for rank, (call, at) in list(self.asked.items()):
            if time.monotonic() - at > self.limit and not self.ray.wait([call], timeout=0)[0]:
                del self.asked[rank]
                message = f"no sign of life for {self.limit:g} s (stopped, or its host hangs)"
                found.append(self.members[rank].failure(message))
        return found

    def behind(self, pending: list[Member]) -> Member | None:
        """Return the one of `pending` that the others waited for: it waits for nobody, or has not answered."""
        absent = [
            member for member in pending if member.rank in self.positions and not self.positions[member.rank].waits_s
        ]
        return min(absent, key=lambda member: self.positions[member.rank].step, default=None)
