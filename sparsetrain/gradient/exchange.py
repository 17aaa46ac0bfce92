"""The gradient exchange: named gradients in, their mean over ranks out; what is not sent stays behind.

One contract: `aggregate` returns the mean, the error stays in the residual (after PowerSGD's aggregator, NeurIPS 2019).
The order is mask, compensate, select, encode, collective, mean; a step that is skipped touches no state.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsetrain.collective.entries import Outcome
from sparsetrain.collective.payload import Codec
from sparsetrain.collective.world import World
from sparsetrain.config.check import check_exchange
from sparsetrain.config.job import Exchange, RegimeName
from sparsetrain.config.load import checked
from sparsetrain.gradient.automatic import first, planner_of, settings_of
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.density import density_at
from sparsetrain.gradient.layout import Shape, build_buckets
from sparsetrain.gradient.pipeline import Inline, Pipeline
from sparsetrain.gradient.planner import Planner
from sparsetrain.gradient.regimes.base import Regime, Turn
from sparsetrain.gradient.regimes.choice import build
from sparsetrain.gradient.round import ExchangeStats, Round
from sparsetrain.gradient.small import Small

WAYS = 3  # buckets that may be under way at once
WARMING = 2  # exchanges at least that count as the first: what Adam's second moments see then, they keep for long


class GradientExchange:
    """Turns local gradients into their mean over all ranks, by the regime that the job names.

    `shapes` gives every parameter once, in model order, equal on all ranks; `steps` is the number of exchanges
    planned (the density warm-up is a share of it). All ranks must make the same calls in the same order, the
    constructor included. `close` ends its threads.
    """

    def __init__(
        self,
        config: Exchange,
        shapes: Mapping[str, Shape],
        world: World,
        steps: int,
        device: torch.device | None = None,
        calibrations: pathlib.Path | None = None,
    ) -> None:
        self.config = config = checked(config)
        check_exchange(config)
        self.step = 0
        self.epoch = 0
        self.seconds = 0.0  # that a caller has waited here, for peers included
        self.mark: Callable[[str, float, float], None] | None = None  # hears of spans: name, began, ended
        self.stats = ExchangeStats()
        self.device = device or world.transport.device
        self.warmup_steps = round(config.warmup * steps)
        self.feedback = config.error_feedback.build()
        self.codec = Codec(config.indices.build(), config.values.build())
        buckets, small = build_buckets(shapes, config.bucket_elements, config.dense_below)
        fields = self.feedback.fields
        self.channels = [Channel(i, b, self.device, fields, config.residual) for i, b in enumerate(buckets)]
        self.small = Small(small, self.device)
        self.built: list[Regime] = []
        self.regimes: list[Regime] = []  # of each channel
        self.set_regimes([first(config)] * len(buckets))
        self.overlap = config.overlap and world.size > 1 and self.device.type == "cpu" and len(buckets) > 0
        # Threads of their own need a way to the others of their own, or two threads' messages would mix.
        count = min(WAYS, len(buckets)) if self.overlap else 0
        self.ways = [dataclasses.replace(world, transport=world.transport.twin()) for _ in range(count)] or [world]
        self.pipeline = Pipeline(count) if self.overlap else Inline()
        self._round: Round | None = None
        own = world.transport.twin() if config.regime == "auto" else world.transport
        self.planner: Planner | None = None
        if config.regime == "auto":
            self.planner = planner_of(self, dataclasses.replace(world, transport=own), calibrations)
        self._arrived: ExchangeStats | None = None  # of an exchange that waits for its commit
        self._began = self._ended = 0.0  # on the clock; 0: no exchange yet

    @torch.no_grad()
    def aggregate(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the mean gradient by name (fp32, zero outside the update set), or None when the step is skipped.

        `gradients` holds every parameter's local, unscaled gradient averaged over accumulation. A non-finite value
        on any rank gives None on all ranks and changes no state. The tensors returned are reused by the next call.
        Collective: all ranks must call it.
        """
        means = self.prepare(gradients)
        self.commit()
        self.plan()
        return means

    @torch.no_grad()
    def prepare(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return what `aggregate` does, and change nothing yet: `commit` makes this exchange one that has happened.

        For who wants to know before that everything has arrived everywhere. Without a `commit` the next `prepare`
        begins where this one did; `plan` comes after both. Collective.
        """
        if self.planner is not None and not self.planner.begun:
            self.planner.begin()
        self._arrived = None
        self._began = time.perf_counter()
        try:
            return self._prepare(gradients)
        finally:
            self._round = None
            self.seconds += self._marked("exchange", self._began)

    @torch.no_grad()
    def commit(self) -> None:
        """Make what `prepare` has brought the present state; nothing crosses ranks."""
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            self.small.commit()
            for channel in (each for each in self.channels if each.size):
                self.regimes[channel.index].commit(channel)
            self.stats = arrived
            self.step += 1

    @torch.no_grad()
    def plan(self) -> None:
        """Let a planner look at the exchange that was committed, and choose anew where it is time. Collective."""
        if self.planner is not None:
            now = time.perf_counter()
            if self._ended:
                self.planner.exchanged(self.step, self._began - self._ended, now - self._ended)
            self._ended = time.perf_counter()

    @property
    def streams(self) -> bool:
        """Return whether buckets may leave before the whole gradient is there."""
        return self.overlap and not self.feedback.clip and (self.planner is None or self.planner.begun)

    @torch.no_grad()
    def offer(self, name: str, gradient: Tensor) -> None:
        """Hand over one finished gradient while others are still being computed; `aggregate` must follow.

        A bucket leaves when its last gradient and all earlier buckets are there. The order of the buckets comes from
        the model, so ranks may offer in any order. The tensor must not change before `aggregate` returns.
        """
        if self.streams and name in self._homes:
            round_ = self._begin({})
            round_.gradients[name] = gradient
            round_.missing[self._homes[name]].discard(name)
            while round_.next >= 0 and not round_.missing[round_.next]:
                self._launch(round_)

    def _prepare(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        round_ = self._begin(gradients)
        # What backward has not offered, unused parameters for instance.
        round_.gradients = {**gradients, **round_.gradients}
        round_.turn = dataclasses.replace(round_.turn, factor=self._clip_factor(gradients))
        while round_.next >= 0:
            self._launch(round_)
        self.small.take(gradients, round_.turn.factor)
        # Not behind the last bucket, which is the first channel: both travel at once.
        number, way = len(self.channels), min(1, len(self.ways) - 1)
        small = self.pipeline.send(lambda: self.small.exchange(self.epoch, number, self.codec, self.ways[way]), way)
        outcomes = [future.result() for future in round_.futures]
        rounded = small.result()
        if not (rounded.finite and all(outcome.finite for outcome in outcomes)):
            self.stats.skipped = True
            return None
        means = self.small.stage(rounded, self.feedback)
        for channel in self.channels:
            means.update(channel.spread())
        round_.stats.distinct = sum(outcome.distinct for outcome in outcomes)
        round_.stats.sent += sum(outcome.sent for outcome in outcomes)
        round_.stats.sent_square += sum(outcome.sent_square for outcome in outcomes)
        self._arrived = round_.stats
        return means

    def _begin(self, gradients: Mapping[str, Tensor]) -> Round:
        if self._round is None:
            missing = [set(channel.bucket.names) for channel in self.channels]
            warming = self.step < max(WARMING, self.warmup_steps)
            turn = Turn(self.step, self.epoch, self._density(), warming=warming)
            self._round = Round(dict(gradients), missing, len(self.channels) - 1, ExchangeStats(turn.density), turn)
        return self._round

    def _launch(self, round_: Round) -> None:
        """Send the next bucket on its way: the last of the model first, as backward finishes them."""
        channel = self.channels[round_.next]
        round_.next -= 1
        way, regime = channel.index % len(self.ways), self.regimes[channel.index]
        round_.futures.append(
            self.pipeline.submit(
                lambda: self._select(channel, regime, round_),
                lambda chosen: self._communicate(channel, regime, chosen, round_.turn, self.ways[way]),
                way,
            )
        )

    @torch.no_grad()
    def _select(self, channel: Channel, regime: Regime, round_: Round) -> Any:
        if channel.size == 0:
            return None
        began = time.perf_counter()
        chosen = regime.select(channel, round_.gradients, round_.turn)
        self._marked("select", began)
        sent, square = regime.sent(chosen)
        round_.stats.active += channel.size
        round_.stats.sent += sent
        round_.stats.sent_square += square
        return chosen

    @torch.no_grad()
    def _communicate(self, channel: Channel, regime: Regime, chosen: Any, turn: Turn, world: World) -> Outcome:
        """Leave the mean of one bucket in the channel, and what did not arrive staged as its next state."""
        if chosen is None:
            return Outcome()
        began = time.perf_counter()
        outcome = regime.communicate(channel, chosen, turn, world)
        self._marked("communicate", began)
        return outcome

    def _marked(self, name: str, began: float) -> float:
        """Let `mark` hear of what ends now, and return its seconds."""
        ended = time.perf_counter()
        if self.mark is not None:
            self.mark(name, began, ended)
        return ended - began

    def _clip_factor(self, gradients: Mapping[str, Tensor]) -> float:
        """Return what the local gradient is multiplied by (DGC, section 3.3: each rank clips at clip / sqrt(P))."""
        if not self.feedback.clip:
            return 1.0
        norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
        limit = self.feedback.clip / self.ways[0].size ** 0.5
        return limit / norm if limit < norm < float("inf") else 1.0

    def _density(self) -> float:
        if not any(regime.config.regime == "sparse" for regime in self.regimes):
            return 1.0
        return density_at(self.step, self.config.density, self.config.warmup_density, self.warmup_steps)

    @property
    def _homes(self) -> dict[str, int]:
        return {name: channel.index for channel in self.channels for name in channel.bucket.names}

    def set_masks(self, masks: Mapping[str, Tensor], epoch: int) -> None:
        """Adopt the update sets of a mask epoch; tensors that are not named are active as a whole. State lives on only
        where a coordinate stays active. An epoch that leaves all update sets as they are costs nothing."""
        self.small.set_masks(masks)
        if any([channel.set_masks(masks) for channel in self.channels]):
            for regime in self.built:
                regime.forget()
            if self.planner is not None:
                self.planner.changed(epoch)
        self.epoch = epoch

    def set_regimes(self, choice: Sequence[Exchange]) -> None:
        """Let every bucket travel as its settings say, from the next exchange on; residuals stay.

        One for each channel, in their order; regime, values, indices, sparsifier, collective and rank count. Every
        rank must call it alike. Raises ValueError where there are more or fewer, JobError for settings that make no
        sense.
        """
        if len(choice) != len(self.channels):
            raise ValueError(f"{len(choice)} settings for {len(self.channels)} buckets")
        self.regimes = [self._regime(settings) for settings in choice]

    def _regime(self, settings: Exchange) -> Regime:
        """Return the regime of these settings: one for all channels, and the same one when it is chosen again."""
        for regime in self.built:
            if regime.config == settings:
                return regime
        check_exchange(settings)
        self.built.append(build(settings, self.feedback))
        return self.built[-1]

    def forget(self) -> None:
        """Keep nothing of earlier exchanges but their number: residuals and their like are zero. Every rank must call
        it."""
        for channel in self.channels:
            channel.forget()
        self.small.forget()
        for regime in self.built:
            regime.restart()

    def state(self) -> dict[str, Tensor]:
        """Return what this rank keeps between steps: `residual/<parameter name>` and its like (fp32, U-coordinates;
        `rest/<parameter name>` is the residual of a tensor that travels dense), `collective/...`. It belongs into a
        file of this rank."""
        state: dict[str, Tensor] = {}
        for channel in self.channels:
            state |= channel.state()
        state |= self.small.saved()
        for regime in self.built:
            state |= regime.state()
        return state

    def choice(self) -> list[RegimeName]:
        """Return the regimes of the buckets where they were chosen in the run, else nothing."""
        chosen = self.planner is not None and self.planner.begun
        return [regime.config.regime for regime in self.regimes if regime.config.regime != "auto"] if chosen else []

    def go_on(self, step: int, choice: Sequence[RegimeName]) -> None:
        """Continue after `step` exchanges with the `choice` of then; before `load_state`. Collective.

        Raises ValueError where the choice is not one for each bucket out of what is allowed.
        """
        self.step = step
        if self.planner is None or not choice:
            return
        wrong = [name for name in choice if name not in self.config.allow]
        if wrong or len(choice) != len(self.channels):
            raise ValueError(f"regimes {', '.join(choice)} for {len(self.channels)} buckets")
        # All of them, so that each finds what it had kept, also where it is not in use now.
        for name in self.config.allow:
            self._regime(settings_of(self.config, name))
        self.planner.go_on(step, [settings_of(self.config, name) for name in choice])

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned; masks must have been set to the epoch it belongs to.

        Raises ValueError, naming the tensor, when a size differs.
        """
        for channel in self.channels:
            channel.load_state(state)
        self.small.load(state)
        for regime in self.built:
            regime.load_state(state, self.ways[0].size)

    def residual_norm(self) -> float:
        """Return the 2-norm of this rank's residual; nan where the error feedback keeps none."""
        if "residual" not in self.feedback.fields:
            return float("nan")
        return float(sum(float(c.read("residual").double().square().sum()) for c in self.channels) ** 0.5)

    def state_bytes(self) -> int:
        """Return the bytes that kept state and its buffers take on this rank."""
        return sum(channel.nbytes() for channel in self.channels)

    def close(self) -> None:
        """End the threads and free their way to the others. The exchange must not be used afterwards."""
        self.pipeline.close()
        if self.overlap:
            for way in self.ways:
                way.transport.close()
        if self.planner is not None:
            self.planner.transport.close()
