"""Which way the buckets take, and why: candidates, predicted and measured, and the rule that chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sparsetrain.config.job import Exchange
from sparsetrain.gradient.cost import Network

GAIN = 0.1  # by which a lossy way must be quicker to the same loss than dense
NEAR = 0.03  # by which it must also be quicker than anything that loses nothing: no more than two medians differ by
DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way for all buckets: `settings` of each, in channel order. `steps_factor`: steps to equal loss over those of
    dense training. Seconds are of a step, `bytes` what a rank sends a step; `measured_s` None: not tried."""

    name: str
    settings: tuple[Exchange, ...]
    lossless: bool
    steps_factor: float = 1.0
    bytes: float = 0.0
    predicted_s: float = 0.0
    measured_s: float | None = None

    @property
    def score(self) -> float:
        """Return seconds of a step times the steps that it takes: what is to be made small."""
        return (self.predicted_s if self.measured_s is None else self.measured_s) * self.steps_factor

    def row(self) -> dict[str, Any]:
        """Return what regimes.json says of it."""
        return {
            "name": self.name,
            "regimes": [each.regime for each in self.settings],
            "lossless": self.lossless,
            "steps_factor": self.steps_factor,
            "bytes_per_step": round(self.bytes),
            "predicted_s": self.predicted_s,
            "measured_s": self.measured_s,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What was chosen before exchange number `exchange` of mask epoch `epoch`, from which candidates, and why."""

    exchange: int
    epoch: int
    network: Network
    compute_s: float
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    why: str

    def line(self) -> str:
        """Return one line for people."""
        rate = self.network.gather_rate * 8e-6
        return (
            f"exchange {self.exchange}: {self.chosen.name}, {self.why} (compute {_ms(self.compute_s)}; links "
            f"{rate:.3g} Mbit/s, {self.network.latency_s * 1e3:.2g} ms a message)"
        )

    def row(self) -> dict[str, Any]:
        """Return what regimes.json holds."""
        return {
            "exchange": self.exchange,
            "mask_epoch": self.epoch,
            "chosen": self.chosen.name,
            "why": self.why,
            "compute_s": self.compute_s,
            "network": dataclasses.asdict(self.network),
            "candidates": [each.row() for each in self.candidates],
        }


def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Return the candidate to take and the reason in words.

    The quickest to equal loss wins. One that loses something must gain GAIN on dense (or, where dense is not allowed,
    on the best that loses nothing) and be ahead of all that lose nothing by NEAR; else the best of these is taken.
    Candidates that were tried stand against each other; predictions decide only where nothing was tried. Raises
    ValueError when there is none.
    """
    tried = [each for each in candidates if each.measured_s is not None] or list(candidates)
    best = min(tried, key=lambda each: each.score)
    lossless = [each for each in tried if each.lossless] or [each for each in candidates if each.lossless]
    if best.lossless or not lossless:
        return best, _against(best, candidates)
    safe = min(lossless, key=lambda each: each.score)
    if best.score > limit(candidates, safe.score):
        gain = 100 * (1.0 - best.score / plain(candidates, safe.score))
        short = f"; {best.name} would gain {gain:.0f} %, under {100 * GAIN:.0f} %" if 0 < gain < 100 * GAIN else ""
        return safe, _against(safe, candidates) + short
    return best, _against(best, candidates)


def plain(candidates: Sequence[Candidate], safe: float) -> float:
    """Return the score that a gain is counted from: dense's, or `safe` where dense is not among the candidates.

    A prediction below what was tried is not believed.
    """
    dense = next((each for each in candidates if each.name == DENSE), None)
    if dense is None:
        return safe
    return dense.score if dense.measured_s is not None else max(dense.score, safe)


def limit(candidates: Sequence[Candidate], safe: float) -> float:
    """Return the highest score with which a lossy way is taken; `safe`: the best of those that lose nothing."""
    return min((1.0 - GAIN) * plain(candidates, safe), (1.0 - NEAR) * safe)


def finalists(candidates: Sequence[Candidate], within: float, most: int) -> list[Candidate]:
    """Return the candidates whose predictions come within the factor `within` of the best, best first."""
    ordered = sorted(candidates, key=lambda each: each.score)
    return [each for each in ordered if each.score <= within * ordered[0].score][:most]


def _against(best: Candidate, candidates: Sequence[Candidate]) -> str:
    others = [each for each in candidates if each.name != best.name]
    said = [_seconds(best), *(f"{each.name} {_seconds(each)}" for each in others)]
    return "; ".join(said)


def _seconds(candidate: Candidate) -> str:
    measured = candidate.measured_s is not None
    text = _ms(candidate.measured_s if candidate.measured_s is not None else candidate.predicted_s)
    factor = "" if candidate.steps_factor == 1.0 else f" x {candidate.steps_factor:g} steps"
    return f"{text}{factor}" + (" a step" if measured else " a step predicted")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
