"""The cluster that a plan is made for: `--cluster FILE.yaml`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from sparsetrain.config.component import STRICT, adapter
from sparsetrain.config.errors import JobError, describe
from sparsetrain.config.load import LONGEST, apply_overrides, read_yaml
from sparsetrain.config.numbers import Above0, Count, Fraction, NotNegative, Number, Positive
from sparsetrain.config.rate import parse_rate
from sparsetrain.plan.fabric import Fabric, Level

FULL = 1448 / 1514  # of a packet's bytes that are payload
LIMITLESS = 1e12  # bytes a second, for "none"


def _rate(text: str) -> str:
    try:
        parse_rate(text)
    except ValueError as error:
        raise PydanticCustomError("rate", "{message}", {"message": str(error).replace("{", "(")}) from error
    return text


Rate = Annotated[str, AfterValidator(_rate)]
Seconds = Annotated[float, Number, Field(ge=0.0, le=1000.0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """One member's way to the others of its level: `rate` in each direction, `latency_s` of a small message."""

    __pydantic_config__ = STRICT
    rate: Rate = "10gbit"
    latency_s: Seconds = 50e-6

    def level(self, name: str, members: int) -> Level:
        """Return the level of a fabric."""
        bits = parse_rate(self.rate)
        return Level(
            name=name,
            members=members,
            rate=LIMITLESS if bits is None else bits / 8 * FULL,
            latency_s=self.latency_s,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Above(Link):
    """A level above the nodes: `joins` of what the level below holds share one up-link of this rate."""

    name: str
    joins: Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stragglers:
    """How unequal the workers are: `share` of them take `factor` times as long to compute, and every step of every
    worker varies by `jitter` (the deviation of its logarithm)."""

    __pydantic_config__ = STRICT
    share: Fraction = 0.0
    factor: Annotated[float, Number, Field(ge=1.0, le=1000.0)] = 1.0
    jitter: Annotated[float, Number, Field(ge=0.0, le=2.0)] = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failures:
    """How often a node is lost, and what that costs: seconds until a survivor's step is done again in memory, and until
    all begin anew from a checkpoint. `node_hours` 0: never."""

    __pydantic_config__ = STRICT
    node_hours: NotNegative = 0.0
    recovery_s: NotNegative = 5.0
    restart_s: NotNegative = 60.0
    replaced_s: NotNegative = 300.0  # until there is another node


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """`nodes` with `workers_per_node` each, the links between them from inside out, and what a worker is.

    `compute_s`: forward, backward and optimizer of a step; null: measured on this machine, `slower` times as long
    there. `spare`: the share of a core that is free for the exchange while a worker computes.
    """

    __pydantic_config__ = STRICT
    name: str = "cluster"
    nodes: Positive = 4
    workers_per_node: Positive = 1
    inside: Link = Link(rate="100gbit", latency_s=10e-6)
    network: Link = Link()
    above: tuple[Above, ...] = ()
    compute_s: Above0 | None = None
    slower: Above0 = 1.0
    spare: Fraction = 0.0
    memory_gb: Above0 | None = None  # of a worker
    price: NotNegative = 0.0  # of a node and hour, in whatever currency
    stragglers: Stragglers = Stragglers()
    failures: Failures = Failures()
    max_workers: Count = 0  # not more workers than this

    @property
    def workers(self) -> int:
        """Return how many workers there are."""
        whole = self.nodes * self.workers_per_node
        return min(whole, self.max_workers) if self.max_workers else whole

    def groups(self) -> list[int]:
        """Return how many ranks the members of each level above the nodes hold, where there are several of them."""
        found, ranks = [], self.workers_per_node
        for above in self.above:
            ranks *= above.joins
            if ranks < self.workers:
                found.append(ranks)
        return found

    def fabric(self) -> Fabric:
        """Return the links between all workers."""
        levels = []
        if self.workers_per_node > 1:
            levels.append(self.inside.level("node", self.workers_per_node))
        groups = self.nodes
        under = self.network
        for above in self.above:
            levels.append(under.level(above.name, min(above.joins, groups)))
            groups = -(-groups // above.joins)
            under = above
        levels.append(under.level("network" if not self.above else "top", max(1, groups)))
        return Fabric(levels, self.workers)


def load_cluster(source: str | None, overrides: tuple[str, ...] = ()) -> ClusterPlan:
    """Return the cluster of a YAML file, or the default one, with `a.b=value` overrides. Raises JobError."""
    tree: Any = {}
    if source is not None:
        try:
            with pathlib.Path(source).open(encoding="utf-8") as file:
                tree = read_yaml(file.read(LONGEST + 1), source)
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"--cluster {source}: cannot be read: {getattr(error, 'strerror', error)}") from error
        if not isinstance(tree, dict):
            raise JobError(f"--cluster {source}: a cluster file holds a mapping, not {type(tree).__name__}")
    return cluster_of(apply_overrides(tree, overrides))


def cluster_of(tree: Any) -> ClusterPlan:
    """Return the checked cluster of a mapping. Raises JobError."""
    try:
        return adapter(ClusterPlan).validate_python(tree)
    except ValidationError as error:
        raise JobError("cluster: " + describe(error, _fields)) from error


def _fields(path: tuple[str, ...]) -> list[str]:
    sections = {"inside": Link, "network": Link, "above": Above, "stragglers": Stragglers, "failures": Failures}
    cls: Any = sections.get(path[0], ClusterPlan) if path else ClusterPlan
    return [field.name for field in dataclasses.fields(cls)]
