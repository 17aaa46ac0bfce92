"""`regime: auto`: watch a few steps, predict every allowed way, try those that come close, take the best.

What is tried are real exchanges of the run: every candidate is a way that the job allows, and a change of way loses
nothing, because what has not been sent stays in the residual. Rank 0's clock decides, and all ranks obey.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch

from sparsetrain.collective.transport import Transport
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.cost import Compute, Network, Stages, alone_seconds, step_seconds
from sparsetrain.gradient.decision import Candidate, Decision, choose, finalists, limit

MIXED = "mixed"  # the way in which buckets go by different regimes
SETTLE = 1  # exchanges after a change of way that do not count: buffers are new
WATCHED = 3  # exchanges that say how long computing takes
TRIES = 3  # exchanges of one turn of a trial
TURNS = 2  # of every finalist
MORE = 3  # more turns of those that then are within CLOSE of the best
CLOSE = 0.1
WITHIN, MOST = 1.3, 4  # of the best prediction; finalists
DRIFT = 2.0  # by which links or step times must have changed to be worth a word
BETTER = 0.2  # by which the prediction of another way must be the better one to be tried
NOISE = 0.05  # by which what loses too much must miss the limit to be given up
RECENT = 20  # exchanges whose median stands for the present


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hands:
    """What the planner can ask for: the candidates, in the order in which a tie goes, and the sizes of the buckets;
    and, each collective, the network, whether it is still the same, the stages of all buckets under some settings (in
    channel order), and to go on with settings."""

    ways: Callable[[], Sequence[Candidate]]
    measure: Callable[[], Network]
    probe: Callable[[Network], Network]
    stages: Callable[[Sequence[Exchange], Network], list[Stages]]
    adopt: Callable[[Sequence[Exchange]], None]
    sizes: Callable[[], list[int]]


class Planner:
    """Call `begin` before the first exchange, `exchanged` after every one, on all ranks alike, and `changed` when the
    update sets have changed. It calibrates anew when a mask update, or `replan` exchanges without one, show that
    links, step times or update sets are no longer those that it has decided on.
    """

    def __init__(self, hands: Hands, transport: Transport, compute: Compute, replan: int) -> None:
        self.ways: tuple[Candidate, ...] = ()
        self.hands = hands
        self.transport = transport
        self.compute = compute
        self.replan = replan
        self.decisions: list[Decision] = []
        self.count = 0  # exchanges so far
        self.epoch = 0
        self.due = False
        self.begun = False
        self._network = Network(latency_s=0.0, reduce_rate=1.0, gather_rate=1.0)
        self._decided: tuple[Candidate, ...] = ()  # the ways as they were at the last decision
        self._planned = 0  # when the last look was taken
        self._note = ""  # why there is a new plan
        self._watching = 0
        self._trial: _Trial | None = None
        self._computing: list[float] = []
        self._intervals: list[float] = []
        self._reference: list[float] = []  # intervals right after the last decision

    @property
    def settled(self) -> bool:
        """Return whether the present way is one that was decided on."""
        return self.begun and self._trial is None and not self._watching

    def begin(self) -> None:
        """Calibrate, and start with the way that is best where nothing can be hidden. Collective."""
        self.begun = True
        self._network = self.hands.measure()
        self._planned, self.due = self.count, False
        ways = self.hands.ways()
        self.ways = tuple(self._predicted(way, 0.0) for way in [*ways, *self._mixed(ways)])
        self._chosen = choose(self.ways)[0]
        self._adopt(self._chosen)
        self._watching = SETTLE + WATCHED

    def go_on(self, count: int, settings: Sequence[Exchange]) -> None:
        """Continue a run that had made `count` exchanges, with the settings it had then. Collective."""
        self.begun = True
        self.count = self._planned = count
        self._network = self.hands.measure()
        self.due = False
        self.ways = tuple(self.hands.ways())
        names = [each.regime for each in settings]
        uniform = [way for way in self.ways if [each.regime for each in way.settings] == names]
        self._chosen = (
            uniform[0] if uniform else dataclasses.replace(self.ways[0], name=MIXED, settings=tuple(settings))
        )
        if not uniform:
            self.ways = (*self.ways, self._chosen)
        self.hands.adopt(settings)

    def changed(self, epoch: int) -> None:
        """Say that the update sets are those of another mask epoch."""
        self.epoch = epoch
        self.due = True

    def exchanged(self, count: int, computing_s: float, interval_s: float) -> None:
        """Note exchange number `count`: this rank's seconds from the end of the one before to its call, and to its end.

        Collective.
        """
        self.count = count
        self._computing.append(computing_s / self.compute.every)
        self._intervals.append(interval_s / self.compute.every)
        del self._computing[:-RECENT], self._intervals[:-RECENT]
        if self._trial is not None:
            self._try(self._trial)
        elif self._watching:
            self._watching -= 1
            if not self._watching:
                self._predict()
        else:
            if len(self._reference) < SETTLE + WATCHED:
                self._reference.append(self._intervals[-1])
            elif self.due or self.count - self._planned >= self.replan:
                self._look_again()

    def _predict(self) -> None:
        """Predict all ways with what was seen, and try those that come close."""
        self.compute = dataclasses.replace(self.compute, seconds=self._agreed(self._computing[-WATCHED:]))
        self.ways = tuple(self._predicted(way, self.compute.seconds) for way in self.ways)
        close = finalists(self.ways, WITHIN, MOST)
        if len(close) == 1:
            self._decide()
        else:
            self._trial = _Trial(close)
            self._adopt(self._trial.way)

    def _try(self, trial: _Trial) -> None:
        """Book a tried exchange; go on with the next finalist, or decide."""
        if not trial.book(self._intervals[-1]):
            return
        if trial.over and not trial.longer:
            found = {name: self._agreed(times) for name, times in trial.seconds.items()}
            scores = {way.name: found[way.name] * way.steps_factor for way in trial.ways}
            bound = (1.0 + CLOSE) * min(scores.values())
            close = [way for way in trial.ways if scores[way.name] <= bound]
            trial.longer = True
            if len(close) > 1:
                trial.add(close, MORE)
        if trial.over:
            found = {name: self._agreed(times) for name, times in trial.seconds.items()}
            self.ways = tuple(dataclasses.replace(way, measured_s=found.get(way.name)) for way in self.ways)
            chosen = choose(self.ways)[0]
            if chosen.measured_s is None:  # only by its prediction: it has to show it
                trial.add([chosen], TURNS)
        if not trial.over:
            self._adopt(trial.way)
            return
        self._trial = None
        self._decide()

    def _decide(self) -> None:
        self._chosen, why = choose(self.ways)
        note, self._note = self._note, ""
        self._decided = self.ways
        self._record(self._chosen, note + why)
        self._adopt(self._chosen)

    def _record(self, chosen: Candidate, why: str) -> None:
        self.decisions.append(
            Decision(
                exchange=self.count,
                epoch=self.epoch,
                network=self._network,
                compute_s=self.compute.seconds,
                candidates=self.ways,
                chosen=chosen,
                why=why,
            )
        )

    def _look_again(self) -> None:
        """Compare the present with what was decided on; plan anew where another way looks better, or steps take longer
        or shorter than they did. Links that have changed are told of in any case."""
        self._planned, self.due = self.count, False
        now, before = self.hands.probe(self._network), self._network
        expected, step_s = self._agreed(self._reference[SETTLE:]), self._agreed(self._intervals)
        chosen = self._chosen
        links = _differ(now.gather_rate, before.gather_rate, DRIFT)
        note = (
            f"links of {now.gather_rate * 8e-6:.3g} Mbit/s, no longer {before.gather_rate * 8e-6:.3g}: "
            if links
            else ""
        )
        self._network = now
        self.compute = dataclasses.replace(self.compute, seconds=self._agreed(self._computing))
        ways = [self._predicted(way, self.compute.seconds) for way in self.ways]
        scores = {way.name: self._corrected(way) for way in ways}
        best = min(scores, key=scores.__getitem__)
        # What loses nothing need not be better, only about as good.
        now_so = [dataclasses.replace(way, predicted_s=scores[way.name] / way.steps_factor) for way in ways]
        safe = min((way.score for way in now_so if way.lossless), default=float("inf"))
        better = scores[best] < (1.0 - BETTER) * scores[chosen.name]
        if better or (not chosen.lossless and (1.0 + NOISE) * limit(now_so, safe) <= scores[chosen.name]):
            self._note = note or "predictions have changed: "
        elif _differ(step_s, expected, DRIFT):
            self._note = note or f"steps of {step_s * 1e3:.3g} ms, no longer {expected * 1e3:.3g}: "
        elif links:
            self.ways = tuple(ways)
            self._record(chosen, f"{note}still the best")
            return
        else:
            return
        self.begin()

    def _corrected(self, now: Candidate) -> float:
        """Return the score of a prediction, times what the last one was wrong by where the way was tried."""
        last = next((way for way in self._decided if way.name == now.name), now)
        wrong = 1.0 if last.measured_s is None else last.measured_s / max(last.predicted_s, 1e-9)
        return now.score * wrong

    def _predicted(self, way: Candidate, seconds: float) -> Candidate:
        """Return the way with its prediction beside `seconds` of computing a step."""
        compute = dataclasses.replace(self.compute, seconds=seconds)
        stages = self.hands.stages(way.settings, self._network)[::-1]  # the last bucket leaves first
        sizes = self.hands.sizes()[::-1]
        sent = sum(stage.volume.bytes for stage in stages) / compute.every
        step_s = step_seconds(stages, sizes, self._network, compute)
        return dataclasses.replace(way, predicted_s=step_s, measured_s=None, bytes=sent)

    def _mixed(self, ways: Sequence[Candidate]) -> list[Candidate]:
        """Return the way in which each bucket takes what is quickest for it alone, unless that is one for all."""
        stages = [self.hands.stages(way.settings, self._network) for way in ways]
        picks = []
        for bucket in range(len(stages[0])):
            costs = [
                alone_seconds(of[bucket], self._network) * w.steps_factor for of, w in zip(stages, ways, strict=True)
            ]
            picks.append(ways[costs.index(min(costs))])
        if len({way.name for way in picks}) < 2:
            return []
        return [
            Candidate(
                name=MIXED,
                settings=tuple(way.settings[bucket] for bucket, way in enumerate(picks)),
                lossless=all(way.lossless for way in picks),
                steps_factor=max(way.steps_factor for way in picks),
            )
        ]

    def _adopt(self, way: Candidate) -> None:
        for times in (self._intervals, self._computing, self._reference):
            times.clear()
        self.hands.adopt(way.settings)

    def _agreed(self, seconds: Sequence[float]) -> float:
        """Return the median of rank 0's seconds. Collective."""
        found = torch.tensor([statistics.median(seconds)], dtype=torch.float64, device=self.transport.device)
        self.transport.broadcast(found, "control")
        return float(found)


class _Trial:
    """Turns of the finalists: in each, SETTLE exchanges that do not count and TRIES that do."""

    def __init__(self, ways: Sequence[Candidate]) -> None:
        self.ways = ways
        self.order: list[Candidate] = []
        self.seconds: dict[str, list[float]] = {}
        self.turn = 0
        self.seen = 0
        self.longer = False  # whether those that are close have got more turns
        self.add(ways, TURNS)

    def add(self, ways: Sequence[Candidate], turns: int) -> None:
        """Give these so many turns more."""
        self.order += [way for _ in range(turns) for way in ways]
        for way in ways:
            self.seconds.setdefault(way.name, [])

    @property
    def way(self) -> Candidate:
        return self.order[self.turn]

    @property
    def over(self) -> bool:
        return self.turn == len(self.order)

    def book(self, seconds: float) -> bool:
        """Note an exchange; return whether the turn is over."""
        self.seen += 1
        if self.seen > SETTLE:
            self.seconds[self.way.name].append(seconds)
        if self.seen < SETTLE + TRIES:
            return False
        self.turn, self.seen = self.turn + 1, 0
        return True


def _differ(one: float, other: float, factor: float) -> bool:
    return max(one, other) > factor * min(one, other)
