"""What a bucket costs the processors under some settings: measured on a bucket of noise over the real ranks."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.cost import Network, Stages
from sparsetrain.gradient.layout import Bucket
from sparsetrain.gradient.regimes.base import Regime, Turn
from sparsetrain.gradient.regimes.choice import build

NAME = "noise"
COLUMNS = 512
SMALLEST, LARGEST = 1 << 16, 1 << 21  # elements of the bucket
WIRE_S = 0.02  # that its message may take
TURNS = 4  # of which the first does not count


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds per element of a bucket: before the wire, and after it (or on it, beyond what the wire takes)."""

    select_s: float
    merge_s: float


class StageBook:
    """Stages of buckets under settings; each kind of settings is measured once, and `keep` is told then. All ranks must
    ask for the same."""

    def __init__(
        self, world: World, device: torch.device, keep: Callable[[Network], None] = lambda network: None
    ) -> None:
        self.world = world
        self.device = device
        self.keep = keep
        self.known: list[tuple[str, float, Costs]] = []  # settings as text, share of active coordinates, costs

    def stages(
        self, channels: Sequence[Channel], settings: Sequence[Exchange], network: Network, density: float
    ) -> list[Stages]:
        """Return the stages of every channel under its settings; `density` is that of sparse ones. Collective."""
        found = []
        for channel, own in zip(channels, settings, strict=True):
            costs = self._costs(own, _share(channel), network, density)
            regime = build(own)
            found.append(
                Stages(
                    select_s=costs.select_s * channel.bucket.size,
                    merge_s=costs.merge_s * channel.bucket.size,
                    volume=regime.volume(channel, self.world.size, density),
                    reduces=regime.reduces,
                )
            )
        return found

    def _costs(self, settings: Exchange, share: float, network: Network, density: float) -> Costs:
        key = json.dumps(adapter(Exchange).dump_python(settings, mode="json"), sort_keys=True)
        for known, at, costs in self.known:
            if known == key and abs(at - share) <= 0.1 * share:
                return costs
        costs = self._measure(settings, share, network, density)
        self.known.append((key, share, costs))
        self.keep(network)
        return costs

    @torch.no_grad()
    def _measure(self, settings: Exchange, share: float, network: Network, density: float) -> Costs:
        """Time both stages on every rank at once; rank 0's shortest times stand. Collective."""
        regime, channel, noise = self._bucket(settings, share, network)
        volume = regime.volume(channel, self.world.size, density)
        wire = network.seconds(volume, regime.reduces) + volume.messages * network.latency_s
        times = []
        meter = self.world.transport.meter
        booked = meter.sent["gradient"]
        for turn in range(TURNS):
            now = Turn(turn, 0, density)
            self.world.transport.barrier()
            began = time.perf_counter()
            chosen = regime.select(channel, {NAME: noise}, now)
            selected = time.perf_counter()
            self.world.transport.barrier()
            sending = time.perf_counter()
            regime.communicate(channel, chosen, now, self.world)
            regime.commit(channel)
            times.append((selected - began, time.perf_counter() - sending))
        # Noise is no gradient: what it has sent is the calibration's.
        sent = meter.sent["gradient"] - booked
        meter.add("gradient", -sent)
        meter.add("control", sent)
        spent = torch.tensor(
            [min(first for first, _ in times[1:]), max(0.0, min(second for _, second in times[1:]) - wire)],
            dtype=torch.float64,
            device=self.device,
        )
        self.world.transport.broadcast(spent, "control")
        select, merge = (spent / channel.bucket.size).tolist()
        return Costs(select, merge)

    def _bucket(self, settings: Exchange, share: float, network: Network) -> tuple[Regime, Channel, Tensor]:
        """Return the regime, a channel of its own with `share` of the coordinates active, and its gradient."""
        elements = int(min(max(WIRE_S * network.gather_rate / 4, SMALLEST), LARGEST))
        bucket = Bucket.of([(NAME, (elements // COLUMNS, COLUMNS))])
        feedback = settings.error_feedback.build()
        channel = Channel(0, bucket, self.device, feedback.fields, settings.residual)
        draw = torch.Generator().manual_seed(self.world.rank)
        noise = torch.randn(bucket.shapes[0], generator=draw).to(self.device)
        noise *= torch.randn(bucket.shapes[0][0], 1, generator=draw).exp().to(self.device)  # rows of unequal scale
        if share < 1.0:
            mask = torch.rand(bucket.shapes[0], generator=torch.Generator().manual_seed(0)) < share
            channel.set_masks({NAME: mask.to(self.device)})
        return build(settings, feedback), channel, noise


def _share(channel: Channel) -> float:
    return channel.size / max(1, channel.bucket.size)
