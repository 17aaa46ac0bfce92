"""What happened since the last row of metrics: losses, spans of time, norms, bytes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator

from sparsetrain.collective.meter import ByteMeter
from sparsetrain.engine.state import RunState
from sparsetrain.engine.update import Updated


class Window:
    """Collects the steps between two rows. Times are this rank's, in seconds; `mark` hears of each span, too."""

    def __init__(
        self,
        meter: ByteMeter,
        exchange_seconds: float = 0.0,
        mark: Callable[[str, float, float], None] | None = None,
    ) -> None:
        self.mark = mark
        self.began = time.perf_counter()
        self.losses: list[float] = []
        self.spans: dict[str, float] = {
            "data": 0.0,
            "forward_backward": 0.0,
            "scores": 0.0,
            "update": 0.0,
            "checkpoint": 0.0,
        }
        self.norms: list[float] = []
        self.skipped = 0
        self.sent_before = dict(meter.sent)
        self.exchange_before = exchange_seconds

    @contextlib.contextmanager
    def span(self, name: str) -> Generator[None]:
        """Add the time of the block to the span `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.spans[name] += ended - began
            if self.mark is not None:
                self.mark(name, began, ended)

    def stepped(self, updated: Updated) -> None:
        """Note one step's outcome."""
        if updated.skipped:
            self.skipped += 1
        else:
            self.norms.append(updated.norm)

    def mean_loss(self) -> float:
        """Return the mean loss of the steps so far."""
        return sum(self.losses) / len(self.losses) if self.losses else float("nan")

    def seconds(self) -> float:
        """Return the seconds since the last row."""
        return time.perf_counter() - self.began

    def figures(self, state: RunState) -> dict[str, float]:
        """Return this window's metrics; byte counters are cumulative, `_per_step` ones are means of the window."""
        steps = max(1, len(self.losses))
        meter, stats = state.world.transport.meter, state.exchange.stats
        residual = state.exchange.residual_norm()
        busy = sum(self.spans.values())
        exchanging = state.exchange.seconds - self.exchange_before
        learned = state.masks.learned if state.masks is not None else {}
        dense = sum(state.elements(name) for name in state.parameters if name not in learned) * 4.0
        samples = state.global_batch * steps
        return {
            "train/grad_norm": sum(self.norms) / len(self.norms) if self.norms else float("nan"),
            "train/skipped": self.skipped,
            "grad/density": stats.density,
            "grad/sent": stats.sent,
            "grad/active": stats.active,
            "grad/distinct": stats.distinct,
            "grad/energy": stats.energy(residual),
            "grad/residual_norm": residual,
            **{f"comm/{kind}_bytes": sent for kind, sent in meter.sent.items()},
            "comm/total_bytes": meter.total,
            "comm/gradient_bytes_per_step": (meter.sent["gradient"] - self.sent_before["gradient"]) / steps,
            "comm/mask_bytes_per_step": (meter.sent["mask"] - self.sent_before["mask"]) / steps,
            "comm/weight_bytes_per_step": (meter.sent["weight"] - self.sent_before["weight"]) / steps,
            "comm/dense_bytes_per_step": 2 * dense * (state.world.size - 1) / state.world.size,
            "time/data_s": self.spans["data"] / steps,
            "time/forward_backward_s": self.spans["forward_backward"] / steps,
            "time/exchange_s": (exchanging + self.spans["scores"]) / steps,
            "time/optimizer_s": (self.spans["update"] - exchanging) / steps,
            "time/checkpoint_s": self.spans["checkpoint"] / steps,
            "time/step_s": busy / steps,
            "throughput/samples_per_s": samples / busy if busy else float("nan"),
        }
