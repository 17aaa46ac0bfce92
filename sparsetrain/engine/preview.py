"""What a run will follow, before it runs: learning rate, density of the exchange, sparsity of the masks, by step."""

from __future__ import annotations

from sparsetrain.config.job import Job
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.gradient.density import density_at
from sparsetrain.masks.methods.regrower import Regrower
from sparsetrain.masks.schedule import Span
from sparsetrain.masks.timing import aims, timing

Row = dict[str, float]


def preview(job: Job) -> list[Row]:
    """Return a row per step, with `train/step` finished steps from 1 on: `train/lr` as a share of its peak,
    `grad/density` of the exchange that the step makes or waits for, `mask/sparsity` and `mask/update_sparsity` that the
    schedule aims at in it, `grad/sent` (entries as a share of all masked weights, a step), and, after a step that
    changes the masks, `mask/update` 1 and the `mask/drop_fraction` of methods that have one.

    Raises JobError where a schedule does not fit the run.
    """
    train, exchange = job.train, job.exchange
    exchanges = -(-train.steps // exchange.every)
    falling = round(exchange.warmup * exchanges)
    masks = _Masks(job) if job.masks is not None else None
    rows = []
    for step in range(1, train.steps + 1):
        number = (step - 1) // exchange.every
        density = 1.0
        if exchange.regime == "sparse":
            density = density_at(number, exchange.density, exchange.warmup_density, falling)
        place, whole = masks.schedule.position(step - 1) if masks is not None else (step - 1, train.steps)
        row = {
            "train/step": step,
            "train/lr": factor_at(place, whole, train.warmup, train.final_learning_rate),
            "grad/density": density,
        }
        row |= masks.at(step) if masks is not None else {"mask/sparsity": 0.0, "mask/update_sparsity": 0.0}
        active = 1.0 if exchange.regime == "dense" else 1.0 - row["mask/update_sparsity"]
        row["grad/sent"] = density * active / exchange.every
        rows.append(row)
    return rows


class _Masks:
    """Follows the schedule of a job's masks, step by step."""

    def __init__(self, job: Job) -> None:
        assert job.masks is not None
        config = job.masks
        self.final = config.sparsity
        self.span = Span(job.train.steps, config.begin, config.end, config.every)
        self.method, self.schedule = timing(config, self.span)
        self.sparsity = 0.0 if self.method.starts_dense else self.final
        self.closed = self.sparsity > 0.0  # whether the update sets leave something out

    def at(self, step: int) -> Row:
        """Return the row of one step; steps come in order."""
        row = {
            "mask/sparsity": self.sparsity,
            "mask/update_sparsity": self.method.update_sparsity(self.sparsity) if self.closed else 0.0,
        }
        if self.method.changes and self.schedule.is_update(step):
            self.sparsity, _ = aims(self.method, self.schedule, self.span, self.final, step)
            learns = self.method.learns_budget and step < max(self.schedule.updates())
            self.closed = self.sparsity > 0.0 and not learns
            row["mask/update"] = 1.0
            if isinstance(self.method, Regrower):
                row["mask/drop_fraction"] = self.method.drop_fraction(self.span.fraction(step))
        return row
