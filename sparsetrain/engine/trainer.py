"""The loop. Read `Trainer.run` and `Trainer.train_step`: they are the algorithm."""

from __future__ import annotations

import contextlib
import math
import pathlib
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sparsetrain.collective.world import World
from sparsetrain.config.check import advice
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_tree
from sparsetrain.engine import checkpoint
from sparsetrain.engine.choices import Choices
from sparsetrain.engine.evaluate import evaluate
from sparsetrain.engine.flow import effective_sparsity
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.engine.probe import ModelProbe
from sparsetrain.engine.state import RunState, build, restore, save
from sparsetrain.engine.update import gradient
from sparsetrain.engine.window import Window
from sparsetrain.masks.agreement import agree_weights
from sparsetrain.masks.controller import Report
from sparsetrain.track.console import RowSink, format_row
from sparsetrain.track.jsonl import JsonlSink
from sparsetrain.track.sink import Row, Sink, Tracker
from sparsetrain.track.wandb import WandbSink


class NotFinite(RuntimeError):
    """Gradients have been infinite or not a number for too long to hope."""


def train(
    job: Job,
    world: World,
    folder: pathlib.Path,
    log: Callable[[str], None],
    show: Callable[[Row], None] | None = None,
    calibrations: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Train the job on this rank and return the last evaluation, steps, wall seconds and the digest of the weights.

    `folder` is the run folder, shared by all ranks; rank 0 writes its metrics there and gives each row to `show`, or
    as a line to `log`. `calibrations`: see state.build. Collective.
    """
    trainer = Trainer(build(job, world, calibrations), folder, log, show)
    try:
        result = trainer.run()
    except BaseException:
        trainer.tracker.close("failed")
        raise
    trainer.state.exchange.close()
    trainer.tracker.close("finished")
    return result


class Trainer:
    """One rank's loop over a RunState."""

    def __init__(
        self,
        state: RunState,
        folder: pathlib.Path,
        log: Callable[[str], None],
        show: Callable[[Row], None] | None = None,
    ) -> None:
        self.state = state
        self.job = state.job
        self.world = state.world
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.log = log
        self.show = show or (lambda row: log(format_row(row)))
        self.tracker = Tracker({})
        self.window = Window(state.world.transport.meter)
        self.peak = [group["lr"] for group in state.optimizer.param_groups]
        self.evaluation: dict[str, float] = {}
        self.skipped = 0  # steps in a row
        self.began = 0.0  # on the clock, evaluations taken out

    def run(self) -> dict[str, Any]:
        """Train until the last step; evaluate, record and save where the job says so."""
        state, job = self.state, self.job
        self._resume()
        self._check_replicas()
        if state.masks is not None and state.masks.waits:
            state.masks.initialise(ModelProbe(state))
            state.sync_masks()
        self.tracker = Tracker(_sinks(state, self.folder, self.show), self.log)
        self.window = Window(self.world.transport.meter, state.exchange.seconds)
        planner = state.exchange.planner
        choices = Choices(self.folder / "regimes.json", state.exchange.step) if self.world.rank == 0 else None
        if hasattr(state.data, "describe"):
            self.log(f"data: {', '.join(f'{key} {value}' for key, value in state.data.describe().items())}")
        if state.masks is not None:
            self.log(f"masks: {state.masks.describe()}")
        for line in advice(job):
            self.log(f"note: {line}")
        if planner is not None and planner.begun:
            self.log(f"exchange: auto goes on with {_named(state.exchange.choice())}")
        self.began = time.perf_counter() - state.wall_s
        while state.step < job.train.steps:
            report = self.train_step()
            if choices is not None and planner is not None:
                choices.tell(planner.decisions, self.log)
            done = state.step == job.train.steps
            state.wall_s = time.perf_counter() - self.began
            row: dict[str, float] = {}
            if report and report.rewound:
                row.update(self.evaluation)
            elif done or state.step % job.train.evaluate_every == 0:
                row.update(self._evaluate())
            if done or row or report or state.step % job.log.every == 0:
                self._record(row, report)
            if done or (job.checkpoint.every and state.step % job.checkpoint.every == 0):
                save(state, self.checkpoints)
        if planner is not None and planner.begun and not planner.settled:
            said = "had not yet decided" if not planner.decisions else "was about to decide anew"
            self.log(
                f"exchange: auto {said} after {state.exchange.step} exchanges; at last it tried "
                f"{_named(state.exchange.choice())}"
            )
        if not self.evaluation:
            self._evaluate()
        return {
            "steps": state.step,
            "wall_s": state.wall_s,
            "weights_digest": state.weights_digest(),
            "sent_bytes": dict(self.world.transport.meter.sent),
            **self.evaluation,
        }

    def train_step(self) -> Report | None:
        """One step: gradients, scores where a mask update is due, update of the weights, update of the masks."""
        state, job = self.state, self.job
        self._set_learning_rate()
        last = state.step + 1 == job.train.steps
        self._forward_backward()
        masks = state.masks
        if masks is not None and state.operations is not None:
            state.dense_steps += state.operations.training(masks.masks, masks.asks_all(state.step + 1))
        if masks is not None and masks.watches(state.step + 1):
            with self.window.span("scores"):
                # Scores are means of unmasked gradients, so they are taken before anything is masked away.
                masks.observe(state.step + 1, {name: gradient(p) for name, p in masks.parameters.items()})
        with self.window.span("update"):
            updated = state.update.step(state.step + 1, last)
        self.window.stepped(updated)
        self.skipped = self.skipped + 1 if updated.skipped else 0
        if self.skipped == job.train.skip_limit:
            raise NotFinite(
                f"step {state.step + 1}: no finite gradient for {self.skipped} steps in a row (train.skip_limit)"
            )
        report = None
        if masks is not None and updated.exchanged:
            masks.mask_weights()
            if masks.rewinding is not None and masks.is_update(state.step + 1):
                self._evaluate()  # what the round has come to, before its weights are gone
            if report := masks.step(state.step + 1, state.optimizer):
                state.sync_masks()
            if report and report.rewound:
                state.forget()
            masks.check(state.step + 1)
        state.step += 1
        return report

    def _set_learning_rate(self) -> None:
        train, masks = self.job.train, self.state.masks
        step, steps = (self.state.step, train.steps) if masks is None else masks.schedule.position(self.state.step)
        factor = factor_at(step, steps, train.warmup, train.final_learning_rate)
        for group, peak in zip(self.state.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * factor

    def _forward_backward(self) -> None:
        """Leave the gradient, averaged over the accumulated micro-batches, in `.grad`."""
        state, train = self.state, self.job.train
        state.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with state.forward(state.step + 1):
            for micro in range(train.accumulate):
                total += self._micro_batch(micro)
        self.window.losses.append(total)

    def _micro_batch(self, micro: int) -> float:
        """Add one micro-batch to the gradients and return its share of the loss."""
        state, train = self.state, self.job.train
        with self.window.span("data"):
            position = state.step * state.global_batch + micro * train.batch_size * self.world.size
            batch = state.data.train_batch(state.sampler.indices(position))
            batch = tuple(part.to(self.world.transport.device) for part in batch)
        state.update.listen(micro + 1 == train.accumulate and state.streams)
        with self.window.span("forward_backward"):
            with self._autocast():
                loss = state.model.loss(batch)
            (loss / train.accumulate).backward()
            return float(loss.detach()) / train.accumulate

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.job.train.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.world.transport.device.type, torch.bfloat16)

    def _evaluate(self) -> dict[str, float]:
        train, began = self.job.train, time.perf_counter()
        self._check_replicas()
        with self.state.forward():
            self.evaluation = evaluate(
                self.state.model, self.state.data, train.batch_size, train.evaluate_batches, self.world
            )
        self.began += time.perf_counter() - began  # evaluation does not count as training time
        return dict(self.evaluation)

    def _check_replicas(self) -> None:
        """Compare all ranks' weights, whatever the job says about masks. Raises ReplicasDiffer."""
        weights = {name: parameter.detach() for name, parameter in self.state.parameters.items()}
        agree_weights(weights, self.world.transport.gather_bytes, "raise")

    def _resume(self) -> None:
        """Restore the newest checkpoint that every rank can read; rank 0 says which there are. Collective."""
        if not self.job.checkpoint.resume:
            return
        own = " ".join(folder.name for folder in checkpoint.complete(self.checkpoints))
        found = checkpoint.names_of(self.world.transport.gather_bytes(own.encode())[0])
        for name in reversed(found):
            problem = ""
            try:
                restore(self.state, self.checkpoints / name)
            except checkpoint.CheckpointError as error:
                problem = str(error)
            told = self.world.transport.gather_bytes(problem.encode(errors="replace"))
            problems = [said.decode(errors="replace") for said in told]
            if not any(problems):
                self.log(f"resumed from {name}")
                return
            rank = next(rank for rank, said in enumerate(problems) if said)
            self.log(f"checkpoint {name} skipped, rank {rank}: {problems[rank]}")
        if found:
            raise checkpoint.CheckpointError(f"none of the {len(found)} checkpoints in {self.checkpoints} is readable")

    def _record(self, row: dict[str, float], report: Report | None) -> None:
        """Send one row of metrics to the tracker. The loss is the mean over ranks: collective."""
        state, transport = self.state, self.world.transport
        local = torch.tensor([self.window.mean_loss(), self.window.seconds()], dtype=torch.float64)
        total = transport.rank_ordered_sum(local.to(transport.device), "control") / self.world.size
        if self.world.rank == 0:
            row = {
                "train/step": state.step,
                "train/samples": state.step * state.global_batch,
                "train/loss": float(total[0]),
                "train/lr": state.optimizer.param_groups[0]["lr"],
                **row,
                **self.window.figures(state),
                **_mask_figures(state, report, bool(row)),
                "memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "memory/residual_gib": state.exchange.state_bytes() / 2**30,
                "job/world_size": self.world.size,
                "job/wall_s": state.wall_s,
            }
            self.tracker.log({key: value for key, value in row.items() if not math.isnan(value)})
        self.window = Window(transport.meter, state.exchange.seconds)


def _sinks(state: RunState, folder: pathlib.Path, show: Callable[[Row], None]) -> dict[str, Callable[[], Sink]]:
    """Return how to open rank 0's sinks; other ranks have none."""
    if state.world.rank != 0:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    job, step = state.job, state.step
    sinks: dict[str, Callable[[], Sink]] = {
        "metrics.jsonl": lambda: JsonlSink(JsonlSink.Config(), folder / "metrics.jsonl", step),
        "console": lambda: RowSink(show),
    }
    if job.log.wandb.mode != "disabled":
        sinks["W&B"] = lambda: WandbSink(job.log.wandb, folder, job.name, to_tree(job))
    return sinks


def _named(choice: Sequence[str]) -> str:
    return ", ".join(sorted(set(choice)))


def _mask_figures(state: RunState, report: Report | None, evaluated: bool) -> dict[str, float]:
    """Return what the masks are like. Operations are shares of dense ones; the training's are those since step 0."""
    if state.masks is None:
        return {}
    masks = state.masks.masks
    figures = {
        "mask/sparsity": masks.sparsity(),
        "mask/epoch": masks.epoch,
        "mask/nonzeros": sum(masks.counts().values()),
    }
    if state.operations is not None:
        figures["mask/forward_operations"] = state.operations.forward(masks)
        figures["mask/training_operations"] = state.dense_steps / max(1, state.step)
    if evaluated:
        example = state.data.train_batch(state.sampler.indices(0))[0][:1].to(state.world.transport.device)
        effective = effective_sparsity(state.model, example, masks)
        figures |= {} if effective is None else {"mask/effective_sparsity": effective}
    if report is not None:
        figures |= {
            "mask/sparsity_target": report.target_sparsity,
            "mask/unit_sparsity": report.unit_sparsity,
            "mask/dropped": report.dropped,
            "mask/grown": report.grown,
            "mask/churn": report.churn,
            "mask/explored": report.explored,
        }
    return figures
