"""The gradient exchange: named gradients in, their mean over ranks out; what is not sent stays behind.

One contract: `aggregate` returns the mean, the error stays in the residual (after PowerSGD's aggregator, NeurIPS 2019).
The order is mask, compensate, select, encode, collective, mean; a step that is skipped touches no state.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from concurrent.futures import Future

import torch
from torch import Tensor

from sparsetrain.collective.dense import Dense
from sparsetrain.collective.entries import Entries, Outcome
from sparsetrain.collective.packed import Packed
from sparsetrain.collective.payload import Codec, Frame
from sparsetrain.collective.world import World
from sparsetrain.config.check import check_exchange
from sparsetrain.config.job import Exchange
from sparsetrain.config.load import checked
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.density import density_at, entries
from sparsetrain.gradient.layout import Shape, build_buckets
from sparsetrain.gradient.pipeline import Inline, Pipeline
from sparsetrain.gradient.small import Small
from sparsetrain.gradient.sparsifiers.base import Ask
from sparsetrain.gradient.sparsifiers.everything import Everything

WAYS = 3  # buckets that may be under way at once


@dataclasses.dataclass
class ExchangeStats:
    """What the last exchange did: the density that was asked for, coordinates in the update set, entries that this
    rank chose, distinct places in the mean (0: not counted), the chosen entries' squared norm."""

    density: float = 1.0
    active: int = 0
    sent: int = 0
    distinct: int = 0
    sent_square: float = 0.0
    skipped: bool = False

    def energy(self, residual_norm: float) -> float:
        """Return the share of the squared norm of gradient plus residual that was sent; nan without a residual."""
        both = self.sent_square + residual_norm**2
        return self.sent_square / both if both > 0.0 else float("nan")


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
    ) -> None:
        self.config = config = checked(config)
        check_exchange(config)
        self.step = 0
        self.epoch = 0
        self.seconds = 0.0  # that a caller has waited here, for peers included
        self.stats = ExchangeStats()
        self.device = device or world.transport.device
        self.warmup_steps = round(config.warmup * steps)
        self.feedback = config.error_feedback.build()
        self.codec = Codec(config.indices.build(), config.values.build())
        if config.regime == "sparse":
            self.sparsifier, self.collective = config.sparsifier.build(), config.collective.build()
        else:
            self.sparsifier = Everything(Everything.Config())
            self.collective = Dense(Dense.Config()) if config.regime == "dense" else Packed(Packed.Config())
        buckets, small = build_buckets(shapes, config.bucket_elements, config.dense_below)
        fields = self.feedback.fields
        self.channels = [Channel(i, b, self.device, fields, config.residual) for i, b in enumerate(buckets)]
        self.small = Small(small, self.device)
        self.overlap = config.overlap and world.size > 1 and self.device.type == "cpu" and len(buckets) > 0
        # Threads of their own need a way to the others of their own, or two threads' messages would mix.
        count = min(WAYS, len(buckets)) if self.overlap else 0
        self.ways = [dataclasses.replace(world, transport=world.transport.twin()) for _ in range(count)] or [world]
        self.pipeline = Pipeline(count) if self.overlap else Inline()
        self._round: _Round | None = None

    @torch.no_grad()
    def aggregate(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the mean gradient by name (fp32, zero outside the update set), or None when the step is skipped.

        `gradients` holds every parameter's local, unscaled gradient averaged over accumulation. A non-finite value
        on any rank gives None on all ranks and changes no state. The tensors returned are reused by the next call.
        Collective: all ranks must call it.
        """
        began = time.perf_counter()
        try:
            return self._aggregate(gradients)
        finally:
            self._round = None
            self.seconds += time.perf_counter() - began

    @property
    def streams(self) -> bool:
        """Return whether buckets may leave before the whole gradient is there."""
        return self.overlap and not self.feedback.clip

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

    def _aggregate(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        round_ = self._begin(gradients)
        # What backward has not offered, unused parameters for instance.
        round_.gradients = {**gradients, **round_.gradients}
        round_.factor = self._clip_factor(gradients)
        while round_.next >= 0:
            self._launch(round_)
        self.small.take(gradients, round_.factor)
        # Not behind the last bucket, which is the first channel: both travel at once.
        number, way = len(self.channels), min(1, len(self.ways) - 1)
        small = self.pipeline.send(lambda: self.small.exchange(self.epoch, number, self.codec, self.ways[way]), way)
        outcomes = [future.result() for future in round_.futures]
        rounded = small.result()
        if not (rounded.finite and all(outcome.finite for outcome in outcomes)):
            self.stats.skipped = True
            return None
        means = self.small.commit(rounded, self.feedback)
        for channel in self.channels:
            self.feedback.commit(channel)
            means.update(channel.spread())
        self.stats = round_.stats
        self.stats.distinct = sum(outcome.distinct for outcome in outcomes)
        self.step += 1
        return means

    def _begin(self, gradients: Mapping[str, Tensor]) -> _Round:
        if self._round is None:
            missing = [set(channel.bucket.names) for channel in self.channels]
            self._round = _Round(dict(gradients), missing, len(self.channels) - 1, ExchangeStats(self._density()))
        return self._round

    def _launch(self, round_: _Round) -> None:
        """Send the next bucket on its way: the last of the model first, as backward finishes them."""
        channel = self.channels[round_.next]
        round_.next -= 1
        way = channel.index % len(self.ways)
        round_.futures.append(
            self.pipeline.submit(
                lambda: self._select(channel, round_),
                lambda chosen: self._communicate(channel, chosen, self.ways[way]),
                way,
            )
        )

    @torch.no_grad()
    def _select(self, channel: Channel, round_: _Round) -> Entries | None:
        if channel.size == 0:
            return None
        gathers = self.sparsifier.gathers and self.feedback.gathers and round_.factor == 1.0
        parts = channel.parts(round_.gradients) if gathers else ()
        if parts:
            channel.reserve()
        else:
            channel.take(round_.gradients, round_.factor)
        ask = Ask(entries(round_.stats.density, channel.size), 1.0, self.step, channel.index, parts)
        chosen = self.feedback.select(channel, self.sparsifier, ask)
        round_.stats.active += channel.size
        round_.stats.sent += len(chosen)
        round_.stats.sent_square += float(chosen.values.square().sum())
        return chosen

    @torch.no_grad()
    def _communicate(self, channel: Channel, chosen: Entries | None, world: World) -> Outcome:
        """Leave the mean of one bucket in the channel, and what did not arrive staged as its next state."""
        if chosen is None:
            return Outcome()
        frame = Frame(channel.size, self.epoch, channel.index)
        if self.config.regime == "dense" and channel.active is not None:
            outcome = self._exchange_dense(channel, chosen, world)
        else:
            outcome = self.collective.exchange(chosen, frame, self.codec, world, channel.mean)
        if outcome.finite:
            self.feedback.keep(channel, chosen, outcome)
        return outcome

    def _exchange_dense(self, channel: Channel, chosen: Entries, world: World) -> Outcome:
        """The dense regime sends the whole bucket, the zeros of masked weights too."""
        assert channel.active is not None
        whole = torch.zeros(channel.bucket.size, dtype=torch.float32, device=self.device)
        whole[channel.active] = chosen.values
        frame = Frame(channel.bucket.size, self.epoch, channel.index)
        everything = dataclasses.replace(chosen, values=whole)
        outcome = self.collective.exchange(everything, frame, self.codec, world, channel.flat)
        if outcome.finite:
            torch.index_select(channel.flat, 0, channel.active, out=channel.mean)
        left = tuple(Entries(None, part.values[channel.active]) for part in outcome.leftover)
        return dataclasses.replace(outcome, leftover=left)

    def _clip_factor(self, gradients: Mapping[str, Tensor]) -> float:
        """Return what the local gradient is multiplied by (DGC, section 3.3: each rank clips at clip / sqrt(P))."""
        if not self.feedback.clip:
            return 1.0
        norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
        limit = self.feedback.clip / self.ways[0].size ** 0.5
        return limit / norm if limit < norm < float("inf") else 1.0

    def _density(self) -> float:
        if self.config.regime != "sparse":
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
            self.collective.forget()
        self.epoch = epoch

    def forget(self) -> None:
        """Keep nothing of earlier exchanges but their number: residuals and their like are zero. Every rank must call
        it."""
        for channel in self.channels:
            channel.forget()
        self.small.forget()
        self.collective.forget()

    def state(self) -> dict[str, Tensor]:
        """Return what this rank keeps between steps: `residual/<parameter name>` and its like (fp32, U-coordinates;
        `rest/<parameter name>` is the residual of a tensor that travels dense), `collective/...`. It belongs into a
        file of this rank."""
        state: dict[str, Tensor] = {}
        for channel in self.channels:
            state |= channel.state()
        state |= self.small.saved()
        return state | {f"collective/{key}": tensor for key, tensor in self.collective.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned; masks must have been set to the epoch it belongs to.

        Raises ValueError, naming the tensor, when a size differs.
        """
        for channel in self.channels:
            channel.load_state(state)
        self.small.load(state)
        learned = {key.removeprefix("collective/"): t for key, t in state.items() if key.startswith("collective/")}
        self.collective.load_state(learned, self.ways[0].size)

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


@dataclasses.dataclass
class _Round:
    """One exchange in the making: gradients so far, names that each bucket waits for, the bucket that leaves next."""

    gradients: dict[str, Tensor]
    missing: list[set[str]]
    next: int
    stats: ExchangeStats
    factor: float = 1.0
    futures: list[Future[Outcome]] = dataclasses.field(default_factory=list)
