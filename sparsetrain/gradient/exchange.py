"""The gradient exchange: named gradients in, their mean over ranks out; what is not sent stays behind.

One contract: `aggregate` returns the mean, the error stays in the residual (after PowerSGD's aggregator, NeurIPS 2019).
The order is mask, compensate, select, encode, collective, mean; a step that is skipped touches no residual.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.collective.payload import DTYPES, Payload
from sparsetrain.collective.world import World
from sparsetrain.config.job import Exchange
from sparsetrain.config.load import checked
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.density import density_at, entries
from sparsetrain.gradient.layout import Shape, build_buckets


@dataclasses.dataclass
class ExchangeStats:
    """What the last aggregate did: entries sent, coordinates in the update set, the density that was asked for."""

    density: float = 1.0
    sent: int = 0
    active: int = 0
    skipped: bool = False


class GradientExchange:
    """Turns local gradients into their mean over all ranks, by the regime that the job names.

    `shapes` gives every parameter once, in model order, equal on all ranks; `steps` is the number of exchanges
    planned (the density warm-up is a share of it). All ranks must make the same calls in the same order.
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
        self.world = world
        self.step = 0
        self.epoch = 0
        self.seconds = 0.0  # spent in aggregate so far, waiting for peers included
        self.stats = ExchangeStats()
        self.device = device or world.transport.device
        self.warmup_steps = round(config.warmup * steps)
        self.sparsifier = config.sparsifier.build()
        self.feedback = config.error_feedback.build()
        self.collective = config.collective.build()
        buckets, self.small = build_buckets(shapes, config.bucket_elements, config.dense_below)
        self.channels = [Channel(i, bucket, self.device) for i, bucket in enumerate(buckets)]
        self.small_flat = torch.zeros(self.small.size, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def aggregate(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the mean gradient by name (fp32, zero outside the update set), or None when the step is skipped.

        `gradients` holds every parameter's local, unscaled gradient averaged over accumulation. A non-finite value
        on any rank gives None on all ranks and changes no residual. The tensors returned are reused by the next call.
        Collective: all ranks must call it.
        """
        began = time.perf_counter()
        means = self._aggregate(gradients)
        self.seconds += time.perf_counter() - began
        return means

    def _aggregate(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        self.small.flatten(gradients, self.small_flat)
        for channel in self.channels:
            channel.take(gradients)
        if not self._all_finite():
            self.stats.skipped = True
            return None
        self.stats = ExchangeStats(density=self._density())
        means = self._exchange_small()
        for channel in self.channels:
            means.update(channel.spread(self._exchange(channel)))
        for channel in self.channels:
            channel.commit()
        self.step += 1
        return means

    def set_masks(self, masks: Mapping[str, Tensor], epoch: int) -> None:
        """Adopt the update set of a mask epoch; residuals live on only where a coordinate stays active."""
        for channel in self.channels:
            channel.set_masks(masks)
        self.epoch = epoch

    def residuals(self) -> dict[str, Tensor]:
        """Return this rank's residuals by parameter name, fp32, in U-coordinates."""
        merged: dict[str, Tensor] = {}
        for channel in self.channels:
            merged.update(channel.residuals())
        return merged

    def load_residuals(self, residuals: Mapping[str, Tensor]) -> None:
        """Put back this rank's residuals; masks must have been set to the epoch they belong to."""
        for channel in self.channels:
            channel.load_residuals(residuals)

    def residual_norm(self) -> float:
        """Return the 2-norm of this rank's residual."""
        return float(sum(float(channel.residual.double().square().sum()) for channel in self.channels) ** 0.5)

    def residual_bytes(self) -> int:
        """Return the bytes that residuals and their buffers take on this rank."""
        return sum(channel.residual.nbytes + channel.buffer.nbytes for channel in self.channels)

    def _density(self) -> float:
        if self.config.regime != "sparse":
            return 1.0
        return density_at(self.step, self.config.density, self.config.warmup_density, self.warmup_steps)

    def _all_finite(self) -> bool:
        """Return whether every gradient on every rank is finite; one word crosses the wire."""
        buffers = [self.small_flat, *(channel.buffer for channel in self.channels)]
        # A sum is not finite when an element is not; it can also overflow, hence the second look.
        finite = all(bool(torch.isfinite(b.sum())) or bool(torch.isfinite(b).all()) for b in buffers)
        bad = torch.tensor([0.0 if finite else 1.0], device=self.device)
        return float(self.world.transport.rank_ordered_sum(bad, "control")) == 0.0

    def _exchange_small(self) -> dict[str, Tensor]:
        if self.small.size == 0:
            return {}
        total = self.world.transport.rank_ordered_sum(self.small_flat, "gradient")
        return self.small.split(total.div_(self.world.size))

    def _exchange(self, channel: Channel) -> Tensor:
        """Return the mean of one bucket in U-coordinates; the channel's buffer becomes the new residual."""
        self.stats.active += channel.size
        if channel.size == 0:
            return channel.buffer
        if self.config.regime == "sparse":
            return self._exchange_sparse(channel)
        self.stats.sent += channel.size
        total = channel.buffer.add_(channel.residual)
        if self.config.regime == "dense" and channel.active is not None:
            flat = channel.flat.zero_()
            flat[channel.active] = total
            self.world.transport.all_reduce(flat, "gradient")
            total = flat[channel.active]
        else:
            total = total.clone()
            self.world.transport.all_reduce(total, "gradient")
        channel.buffer.zero_()
        return total.div_(self.world.size)

    def _exchange_sparse(self, channel: Channel) -> Tensor:
        k = entries(self.stats.density, channel.size)
        self.stats.sent += k
        residual = channel.residual if self.feedback.keeps else None
        indices, values = self.sparsifier.select(residual, channel.buffer, k)
        dtype = DTYPES[self.config.values]
        # The largest fp32 numbers round up to infinity in bf16.
        sent = values.to(dtype).clamp_(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        # "Sent" means "decoded by the receivers": what rounding takes away stays in the residual.
        channel.buffer[indices.long()] = values - sent.float()
        payload = Payload(indices, sent, channel.size, self.epoch, channel.index)
        mean, leftover = self.collective.exchange(payload, self.world)
        if leftover is not None:
            channel.buffer.add_(leftover)
        if not self.feedback.keeps:
            channel.buffer.zero_()
        return mean
