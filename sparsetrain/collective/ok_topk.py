"""Ok-Topk (Li and Hoefler, PPoPP 2022): split, reduce, select again, gather. At most 6 k (P-1)/P words per rank."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from sparsetrain.collective.collective import Load, Volume
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import Frame
from sparsetrain.collective.split_reduce import SplitReduce, latencies
from sparsetrain.collective.whole import whole_sum
from sparsetrain.collective.world import World
from sparsetrain.config.numbers import Positive

NUDGE = 1.025  # the factor of the published BERT runs
LOW, HIGH = 4 / 5, 5 / 4  # realised share of k inside which the threshold is left alone


class OkTopk(SplitReduce):
    """Split, reduce, keep the sums above a global threshold, gather: 2 k (P-1)/P entries, 2 P + 2 log2 P latencies.

    What loses the second selection goes back to the residuals of the ranks that sent it. Every `select_every`
    exchanges the threshold is the exact k-th largest |sum|, found by four small counts; between, it is used again and
    moved by 2.5 % when the count leaves 4/5..5/4 of k.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:  # pyrefly: ignore[bad-override]
        """`rebalance`, `select_every`: exchanges between two looks at the regions, at the threshold.

        The published runs look every 32 exchanges. While residuals grow an old threshold is far too low (1.8 k were
        passed on in a trial), and looking costs four small messages: so the default is every time.
        """

        rebalance: Positive = 8
        select_every: Positive = 1

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.every = config.select_every
        self.threshold: dict[int, float] = {}
        self.uses: dict[int, int] = {}

    def kept(self, places: Tensor, region: Tensor, asked: int, frame: Frame, world: World) -> Tensor:
        """Return the owner's places whose |sum| reaches the bucket's threshold."""
        bucket = frame.bucket
        magnitude = region[places.long()].abs()
        if bucket not in self.threshold or self.uses[bucket] >= self.every:
            self.threshold[bucket] = kth_magnitude(magnitude, asked, world)
            self.uses[bucket] = 0
        self.uses[bucket] += 1
        return places[magnitude >= self.threshold[bucket]]

    def learned(self, bucket: int, asked: int, realised: int) -> None:
        """Move the threshold when the count has left the band; every rank sees the same count."""
        if realised > HIGH * asked:
            self.threshold[bucket] *= NUDGE
        elif realised < LOW * asked:
            self.threshold[bucket] /= NUDGE

    def arrived(self, indices: Tensor, sums: list[Entries], size: int) -> Tensor | None:
        """Return which of this rank's entries won the second selection."""
        flags = torch.zeros(size, dtype=torch.bool)
        for each in sums:
            assert each.indices is not None
            flags[each.indices.long()] = True
        return flags[indices.long()]

    def volume(self, load: Load) -> Volume:
        """Return 2 k (P-1)/P entries, which is 4 k (P-1)/P words, and 2 P + 2 log2 P latencies."""
        share = (load.ranks - 1) / load.ranks
        return Volume(2 * load.count * load.entry_bytes * share, latencies(load.ranks))

    def state(self) -> dict[str, Tensor]:
        """See Collective."""
        state = super().state()
        state |= {f"{b}/threshold": torch.tensor(t, dtype=torch.float64) for b, t in self.threshold.items()}
        return state | {f"{b}/uses": torch.tensor(n) for b, n in self.uses.items()}

    def load_state(self, state: dict[str, Tensor], ranks: int) -> None:
        """See Collective."""
        super().load_state(state, ranks)
        for key, tensor in state.items():
            bucket, _, field = key.partition("/")
            # Sums of another number of ranks have another scale.
            if field == "threshold" and int(bucket) in self.regions.edges and f"{bucket}/uses" in state:
                self.threshold[int(bucket)] = float(tensor)
                self.uses[int(bucket)] = int(state[f"{bucket}/uses"])

    def forget(self) -> None:
        """See Collective."""
        super().forget()
        self.threshold.clear()
        self.uses.clear()


def kth_magnitude(magnitude: Tensor, k: int, world: World) -> float:
    """Return the k-th largest of all ranks' magnitudes (fp32, not negative); 0 when there are fewer. Collective.

    Floats that are not negative are ordered as their bits are: four counts of 256 bins find one byte after the other.
    """
    bits = magnitude.contiguous().numpy().view(np.uint32)
    prefix, wanted = 0, k
    for shift in (24, 16, 8, 0):
        counts = np.bincount((bits >> shift) & 0xFF, minlength=256)
        counted = torch.from_numpy(counts.astype(np.int32)).to(world.transport.device)
        total = whole_sum(counted, world.transport).cpu().numpy()
        reach = np.cumsum(total[::-1])
        if reach[-1] < wanted:
            return 0.0
        top = int(np.searchsorted(reach, wanted))
        wanted -= int(reach[top - 1]) if top else 0
        byte = 255 - top
        prefix |= byte << shift
        bits = bits[((bits >> shift) & 0xFF) == byte]
    return float(np.array(prefix, dtype=np.uint32).view(np.float32))
