"""Which rank owns which part of a bucket: equal shares of the entries, not of the coordinates (Ok-Topk, 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetrain.collective.whole import whole_sum
from sparsetrain.collective.world import World


class Regions:
    """The P + 1 edges of each bucket's regions, the same on all ranks; found anew every `every` exchanges.

    Each rank cuts its own sorted places into P equal parts; the cut points are averaged over ranks. Residuals move the
    places most in the first steps, so the waits between two looks start at 1 and double until they reach `every`.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.edges: dict[int, Tensor] = {}
        self.age: dict[int, int] = {}
        self.wait: dict[int, int] = {}

    def of(self, bucket: int, indices: Tensor, size: int, world: World) -> list[int]:
        """Return the edges, 0 and `size` included. Collective: all ranks must call it for the same bucket."""
        edges = self.edges.get(bucket)
        if edges is None or self.age[bucket] >= self.wait[bucket]:
            edges = self.edges[bucket] = _average(indices, size, world)
            self.wait[bucket] = min(self.every, 2 * self.wait.get(bucket, 0) or 1)
            self.age[bucket] = 0
        self.age[bucket] += 1
        return edges.tolist()

    def state(self) -> dict[str, Tensor]:
        """Return edges, their ages and the waits, by `bucket/field`."""
        state = {f"{bucket}/edges": edges for bucket, edges in self.edges.items()}
        state |= {f"{bucket}/age": torch.tensor(age) for bucket, age in self.age.items()}
        return state | {f"{bucket}/wait": torch.tensor(wait) for bucket, wait in self.wait.items()}

    def load_state(self, state: dict[str, Tensor], ranks: int) -> None:
        """Put back what `state` returned; edges of another number of ranks are left out."""
        self.forget()
        for key, tensor in state.items():
            bucket, _, field = key.partition("/")
            known = {f"{bucket}/age", f"{bucket}/wait"} <= state.keys()
            if field == "edges" and tensor.numel() == ranks + 1 and known:
                self.edges[int(bucket)] = tensor.clone()
                self.age[int(bucket)] = int(state[f"{bucket}/age"])
                self.wait[int(bucket)] = int(state[f"{bucket}/wait"])

    def forget(self) -> None:
        """Drop all edges."""
        self.edges.clear()
        self.age.clear()
        self.wait.clear()


def _average(indices: Tensor, size: int, world: World) -> Tensor:
    ranks, count = world.size, indices.numel()
    at = torch.arange(1, ranks, device=indices.device) * count // ranks
    even = torch.arange(1, ranks, device=indices.device) * size // ranks
    own = indices[at].long() if count else even
    cuts = whole_sum(own.to(world.transport.device), world.transport)
    return torch.cat([torch.tensor([0]), cuts.cpu() // ranks, torch.tensor([size])])
