"""`bench volume`: what each collective puts on the wire as ranks are added. Counted, not timed.

All ranks live in this process (collective/simulated.py), with int32 places and fp32 values: an entry is two words of
four bytes. Counted is all that a step's exchange sends, headers, lengths and ok_topk's counts included; an all-reduce
is booked as a ring, 2 n (P-1)/P. So are the looks of split_reduce and ok_topk at their regions.

The gradients: LAYERS parts of other scales, so that entries lie unevenly over the regions; 0.36 of the variance is
common to all ranks and the rest is a rank's own, so that their places overlap in part. Every rank keeps what did not
arrive and adds it to its next gradient. `packed` has no say in its places, so it takes evenly spaced ones.

Memory: about 4 n (P + 6) bytes.
"""

from __future__ import annotations

import dataclasses
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.bench.synthetic import COMMON, SPREAD
from sparsetrain.collective.butterfly import rounds_of
from sparsetrain.collective.collective import Collective
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.index_codes import Int32
from sparsetrain.collective.meter import Kind
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.simulated import Simulation, TurnTaking
from sparsetrain.collective.transport import LENGTH
from sparsetrain.collective.value_codes import FP32
from sparsetrain.collective.world import World
from sparsetrain.config.component import NoOptions
from sparsetrain.gradient.density import entries as entries_of
from sparsetrain.kernels.select import select

WORD = 4  # bytes
WARMUP = 3  # steps: the first finds regions and has no residual yet
LAYERS = 64
PATIENCE = 600.0  # seconds that a rank waits for its turn
COLUMNS = (
    "name",
    "ranks",
    "n",
    "k",
    "distinct",
    "words_sent",
    "words_sent_worst",
    "words_received",
    "words_received_worst",
    "bytes",
    "formula",
    "bound_words",
    "ratio_to_bound",
    "ratio_to_bound_worst",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to count: `size` elements of which a share of `density` is sent, the mean over `rounds` steps."""

    ranks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    size: int = 1_000_000
    density: float = 0.01
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError where a number makes no sense."""
        if self.rounds < 1 or self.size < 1000 or not 0 < self.density <= 1:
            raise ValueError("want at least 1 round and 1000 elements, and a density in (0, 1]")
        if not self.ranks or min(self.ranks) < 2:
            raise ValueError("want at least 2 ranks: one alone sends nothing")


@dataclasses.dataclass(frozen=True)
class Formula:
    """Words per rank and step by the literature: `words(ranks, k, distinct)`, and the same to read."""

    text: str
    words: Callable[[int, float, float], float]


# `distinct` are the places in the mean. Ok-Topk's bound (PPoPP 2022, section 3) is in what came out, not in what was
# asked for: it holds for the larger of the two counts.
FORMULAS = {
    "packed": Formula("2k(P-1)/P", lambda ranks, k, distinct: 2 * k * (ranks - 1) / ranks),
    "allgather": Formula("2k(P-1)", lambda ranks, k, distinct: 2 * k * (ranks - 1)),
    "split_reduce": Formula(
        "2(k+distinct)(P-1)/P", lambda ranks, k, distinct: 2 * (k + distinct) * (ranks - 1) / ranks
    ),
    "gtopk": Formula("2k log2 P", lambda ranks, k, distinct: 2 * k * rounds_of(ranks)),
    # Where no two ranks choose the same place, every round sends twice what the one before did.
    "recursive_doubling": Formula("<=2k(P-1)", lambda ranks, k, distinct: 2 * k * (ranks - 1)),
    "ok_topk": Formula("<=6k(P-1)/P", lambda ranks, k, distinct: 6 * max(k, distinct) * (ranks - 1) / ranks),
}


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Return a row with COLUMNS per collective and number of ranks: words and bytes per rank and step.

    `words_sent` and `words_received` are means over ranks, `..._worst` those of the rank with the most. The bound is
    what the formula gives for the counts that came out; `ratio_to_bound` is of the mean, `..._worst` of the rank that
    sends or receives the most. `k` are the entries of a rank, `distinct` the places in the mean, None where the
    collective does not count them.
    """
    return [_row(name, ranks, plan) for name in FORMULAS for ranks in plan.ranks]


def _row(name: str, ranks: int, plan: Plan) -> dict[str, Any]:
    simulation, drawn, token = Simulation(ranks, PATIENCE), _Gradients(plan), threading.Lock()

    def body(world: World) -> _Counts:
        transport = CountingTransport(world.rank, simulation, token)
        with token:
            return _count(name, dataclasses.replace(world, transport=transport), transport, drawn, plan)

    found = simulation.run(body)
    sent, received = [each.sent / WORD for each in found], [each.received / WORD for each in found]
    k, distinct = statistics.fmean(each.k for each in found), found[0].distinct
    words = FORMULAS[name].words(ranks, k, distinct)
    mean, worst = statistics.fmean(sent), max(*sent, *received)
    about = (name, ranks, plan.size, k, distinct or None)
    counted = (mean, max(sent), statistics.fmean(received), max(received), WORD * mean)
    bound = (FORMULAS[name].text, words, mean / words, worst / words)
    return dict(zip(COLUMNS, (*about, *counted, *bound), strict=True))


@dataclasses.dataclass(frozen=True)
class _Counts:
    """One rank's means over the steps that count: bytes sent and received, entries, places in the mean."""

    sent: float
    received: float
    k: float
    distinct: float


def _count(name: str, world: World, transport: CountingTransport, drawn: _Gradients, plan: Plan) -> _Counts:
    cls: Any = registry.load("collective", name)
    collective: Collective = cls(cls.Config())
    rank, codec = _Rank(world.rank, drawn), Codec(Int32(NoOptions()), FP32(NoOptions()))
    k, distinct = 0, 0
    sent = received = 0.0
    for step in range(WARMUP + plan.rounds):
        if step == WARMUP:
            k, distinct, sent, received = 0, 0, transport.meter.total, transport.received
        chosen = rank.shared(step) if collective.support == "shared" else rank.largest(step)
        outcome = collective.exchange(chosen, Frame(plan.size, 0, 0), codec, world, drawn.mean)
        rank.keep(outcome)
        k, distinct = k + len(chosen), distinct + outcome.distinct
    totals = (transport.meter.total - sent, transport.received - received, k, distinct)
    return _Counts(*(total / plan.rounds for total in totals))


class CountingTransport(TurnTaking):
    """A simulated rank that also counts the bytes it receives. Taking turns, no two ranks hold the messages of all
    others at the same time."""

    def __init__(self, rank: int, simulation: Simulation, token: threading.Lock) -> None:
        super().__init__(rank, simulation, token)
        self.received = 0.0

    def all_reduce(self, tensor: Tensor, kind: Kind) -> None:
        """See Transport."""
        self.received += 2 * tensor.nbytes * (self.size - 1) / self.size
        super().all_reduce(tensor, kind)

    def all_gather(self, tensor: Tensor, kind: Kind) -> list[Tensor]:
        """See Transport."""
        return self._counted(super().all_gather(tensor, kind), False)

    def all_gather_v(self, tensor: Tensor, kind: Kind, lengths: Sequence[int] | None = None) -> list[Tensor]:
        """See Transport."""
        return self._counted(super().all_gather_v(tensor, kind, lengths), lengths is None)

    def all_to_all_v(self, parts: Sequence[Tensor], kind: Kind, sizes: Sequence[int] | None = None) -> list[Tensor]:
        """See Transport."""
        return self._counted(super().all_to_all_v(parts, kind, sizes), sizes is None)

    def _counted(self, parts: list[Tensor], lengths: bool) -> list[Tensor]:
        self.received += sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank)
        self.received += LENGTH * (self.size - 1) if lengths else 0
        return parts


class _Gradients:
    """The gradients of all ranks, one at a time, and the work space that the ranks share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.k = entries_of(plan.density, plan.size)
        scales = torch.randn(LAYERS, generator=self._generator(0, 0)).mul_(SPREAD).exp_()
        self.scales = scales.repeat_interleave(-(-plan.size // LAYERS))[: plan.size]
        self.flat, self.common, self.spare, self.mean = (torch.empty(plan.size) for _ in range(4))
        self.step = -1

    def draw(self, step: int, rank: int) -> Tensor:
        """Return the gradient (fp32 [size]) of a step and rank; valid until the next call."""
        if step != self.step:
            self.common.normal_(generator=self._generator(step + 1, 0)).mul_(COMMON)
            self.step = step
        self.flat.normal_(generator=self._generator(step + 1, rank + 1)).mul_((1 - COMMON**2) ** 0.5)
        return self.flat.add_(self.common).mul_(self.scales)

    def _generator(self, step: int, who: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.plan.seed * 10_007 + step) * 10_007 + who)


class _Rank:
    """What one rank sends, and what it keeps (EF14)."""

    def __init__(self, rank: int, drawn: _Gradients) -> None:
        self.rank = rank
        self.drawn = drawn
        self.residual = torch.zeros(drawn.plan.size)

    def largest(self, step: int) -> Entries:
        """Return the k largest of gradient + residual; the rest is the new residual."""
        drawn = self.drawn
        chosen = select(self.residual, drawn.spare, drawn.k, parts=(drawn.draw(step, self.rank),))
        self.residual, drawn.spare = drawn.spare, self.residual
        return Entries(chosen.indices, chosen.values, asked=drawn.k)

    def shared(self, step: int) -> Entries:
        """Return the gradient at k places that are the same on all ranks."""
        places = torch.arange(self.drawn.k) * (self.drawn.plan.size // self.drawn.k)
        return Entries(places.int(), self.drawn.draw(step, self.rank)[places], shared=True, asked=self.drawn.k)

    def keep(self, outcome: Outcome) -> None:
        """Add to the residual what did not arrive."""
        for part in outcome.leftover:
            if part.indices is not None:
                self.residual.index_add_(0, part.indices, part.values)
