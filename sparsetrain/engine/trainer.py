"""The loop. Read `Trainer.run` and `Trainer.train_step`: they are the algorithm."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsetrain.collective.world import World
from sparsetrain.config.job import Job
from sparsetrain.engine.choices import undecided
from sparsetrain.engine.compact import refusal
from sparsetrain.engine.dump import dump
from sparsetrain.engine.evaluate import evaluate
from sparsetrain.engine.fence import Fence
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.engine.pieces import Pieces, capture
from sparsetrain.engine.probe import ModelProbe
from sparsetrain.engine.recorder import Recorder
from sparsetrain.engine.resume import drop_after, resume
from sparsetrain.engine.rollback import Spikes
from sparsetrain.engine.saver import Saver
from sparsetrain.engine.state import RunState, build
from sparsetrain.engine.store import open_store
from sparsetrain.engine.update import Updated
from sparsetrain.gradient.handover import hand_over
from sparsetrain.masks.agreement import agree_weights
from sparsetrain.masks.lazy import Lazy
from sparsetrain.masks.report import Report
from sparsetrain.track.sink import Row


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
    except BaseException as error:
        trainer.recorder.failed(error)
        raise
    trainer.close("finished")
    return result


class Trainer:
    """One rank's loop over a RunState.

    `recovers`: keep what makes up for a rank that is lost in the middle of a mask update. `recorded`: the last step
    whose row, evaluation and checkpoint are done.
    """

    def __init__(
        self,
        state: RunState,
        folder: pathlib.Path,
        log: Callable[[str], None],
        show: Callable[[Row], None] | None = None,
        recovers: bool = False,
    ) -> None:
        self.state = state
        self.job = state.job
        self.world = state.world
        self.folder = folder
        self.log = log
        self.recovers = recovers and state.world.size > 1
        self.recorder = Recorder(state, folder, log, show, keeps=self.recovers)
        self.peak = [group["lr"] for group in state.optimizer.param_groups]
        self.evaluation: dict[str, float] = {}
        self.skipped = 0  # steps in a row
        self.began = 0.0  # on the clock, evaluations taken out
        self.recorded = 0
        self.owed: Row = {}  # the last row, where whoever was to write it is gone
        self.norm = float("nan")  # of the last mean gradient
        self.cost = 0.0  # dense steps that the step under way is worth
        self.undo: Pieces | None = None  # the state before a mask update, until the next exchange
        self.before: tuple[Tensor, dict[str, Tensor]] | None = None  # random generator and scores before a step
        self.spikes = Spikes(self.job.train.spike)
        self.spiked = False
        self.calm = 0  # the last step whose loss was as usual
        fence = Fence(folder, self.world.generation)
        if self.world.rank == 0:
            fence.take_over()
        self.saver = Saver(open_store(self.job, folder), self.job, self.world, state.update.assent, log, fence)

    def run(self, resumes: bool = True) -> dict[str, Any]:
        """Train until the last step, or until a rank asks for another world (then the result says "paused"); evaluate,
        record and save where the job says so. `resumes`: begin from the newest checkpoint, if there is one."""
        state, job = self.state, self.job
        if resumes:
            if job.checkpoint.resume:
                resume(state, self.saver.keeper, self.log)
            self.recorded = state.step
            self.check_replicas()
        if state.masks is not None and state.masks.waits:
            with state.engine.whole(change=True):
                state.masks.initialise(ModelProbe(state))
            state.sync_masks()
        if job.compute != "masked" and not state.engine.packs:
            self.log(f"compute: {job.compute} is masked here: {refusal(job)}")
        for name, why in state.engine.others.items():
            self.log(f"compute: {name}: masked; {why}")
        self._choose()
        self._open()
        self.began = time.perf_counter() - state.wall_s
        self._conclude(self._change_masks())  # of a step that other ranks have not seen the end of
        assent = state.update.assent
        while state.step < job.train.steps and not (assent.pausing and state.at == state.boundary):
            self._conclude(self.train_step())
            if self.spiked:
                self._roll_back()
        self.saver.finish()
        if state.step < job.train.steps:
            hand_over(state.exchange, self.world, assent.leaving)
            return {"paused": True, "steps": state.step}
        self.saver.end(lambda: capture(state, digest=False), state.step)
        if said := undecided(state.exchange):
            self.log(said)
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
        masks = state.masks
        self.before = (torch.get_rng_state(), masks.rank_state() if masks is not None else {})
        self._forward_backward()
        if masks is not None and state.operations is not None:
            self.cost = state.operations.training(masks.masks, masks.asks_all(state.step + 1))
        if masks is not None and masks.watches(state.step + 1):
            gradients = Lazy(masks.parameters, state.engine.dense_gradient)
            with self.recorder.window.span("scores"), self._whole():
                # Scores are means of unmasked gradients, so they are taken before anything is masked away.
                masks.observe(state.step + 1, gradients)
        with self.recorder.window.span("update"):
            updated = state.update.step(state.step + 1, last)
        self.stepped(updated)
        return self._change_masks()

    def stepped(self, updated: Updated) -> None:
        """Note a step that has happened on this rank."""
        state = self.state
        self.recorder.window.stepped(updated)
        self.norm = updated.norm
        self.before = None
        if updated.exchanged:
            self.undo = None
        state.dense_steps += self.cost
        state.advance(updated.exchanged)
        self.skipped = self.skipped + 1 if updated.skipped else 0
        if self.skipped == self.job.train.skip_limit:
            written = dump(state, self.folder, self.recorder.window.losses)
            where = f"; see {written}" if written else ""
            raise NotFinite(
                f"step {state.step}: no finite gradient for {self.skipped} steps in a row (train.skip_limit){where}"
            )

    def _change_masks(self) -> Report | None:
        """Let the masks follow an exchange, where they have not yet. Collective."""
        state, masks = self.state, self.state.masks
        if masks is None or not state.masks_due:
            return None
        updates = masks.is_update(state.step)
        if updates and self.recovers and self.undo is None:
            self.undo = capture(state).copied()
        touched = updates or masks.checks(state.step) or not (state.engine.gathers or state.engine.packs)
        # Where masked weights are not held, others are needed whole only for who writes them: some updates, and a check
        # that takes rank 0's.
        overwrites = masks.config.agreement == "rank0" and masks.checks(state.step)
        writes = touched and (overwrites or not masks.piecewise)
        with state.engine.whole(change=True) if writes else contextlib.nullcontext():
            if touched or state.engine.packs:
                masks.mask_weights()
            if masks.rewinding is not None and updates:
                self._evaluate()  # what the round has come to, before its weights are gone
            with self.recorder.spans.span("masks"):
                report = masks.step(state.step, state.engine.transitions)
            if report:
                state.engine.follow(report.old, report.new)
            masks.check(state.step)
        if report:
            self._choose()
            state.sync_masks()
        if report and report.rewound:
            state.forget()
        state.masks_due = False
        return report

    def _whole(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which weights can be looked at: whole, or by name where they are held compact."""
        return contextlib.nullcontext() if self.state.engine.packs else self.state.engine.whole()

    def _choose(self) -> None:
        """Decide how layers multiply, where masks have left that open. Collective."""
        lines = self.state.engine.choose()
        for line in lines:
            self.log(line)
        if lines:
            self.state.sync_masks()

    def _conclude(self, report: Report | None) -> None:
        """Evaluate, record and save after a step, where the job says so and it has not been done. Collective."""
        state, job = self.state, self.job
        self.recorder.stepped()
        self.saver.heard()
        if state.step <= self.recorded:
            return
        done = state.step == job.train.steps
        state.wall_s = time.perf_counter() - self.began
        row: dict[str, float] = {}
        loss: float | None = None  # of the weights as they are now
        if report and report.rewound:
            row.update(self.evaluation)
        elif done or state.step % job.train.evaluate_every == 0:
            row.update(self._evaluate())
            loss = row.get("eval/loss")
        if done or row or report or state.step % job.log.every == 0:
            self._record(row, report)
        due = job.checkpoint.every and state.step % job.checkpoint.every == 0
        if (done or due) and not self.spiked:
            with self.recorder.window.span("checkpoint"):
                self.saver.save(capture(state, digest=False), state.step, loss)
                if said := state.engine.saved(self.folder, state.step, done):
                    self.log(said)
        self.recorded = state.step

    def save(self) -> bool:
        """Save the state now, if it is not, and return whether it is (rank 0 knows). Collective, between two steps."""
        if self.saver.lacks(self.state.step):
            self.saver.save(capture(self.state, digest=False), self.state.step)
            self.saver.finish()
        return self.saver.complete == self.state.step

    def _open(self) -> None:
        """Begin to record in this group."""
        self.recorder.open(self.recorded)
        if self.owed:
            self.recorder.tracker.log(self.owed)
            self.owed = {}

    def close(self, status: str) -> None:
        """End the sinks and the threads. Collective."""
        self.state.close()
        self.recorder.close(status)

    def _set_learning_rate(self) -> None:
        train, masks = self.job.train, self.state.masks
        step, steps = (self.state.step, train.steps) if masks is None else masks.schedule.position(self.state.step)
        factor = factor_at(step, steps, train.warmup, train.final_learning_rate)
        if train.resize == "scaled":
            factor *= self.world.size / self.job.cluster.workers.max
        for group, peak in zip(self.state.optimizer.param_groups, self.peak, strict=True):
            group["lr"] = peak * factor

    def _forward_backward(self) -> None:
        """Leave the gradient, averaged over this rank's samples, in `.grad`, as its share of the mean over ranks."""
        state = self.state
        state.engine.begin()
        state.engine.watch(state.masks is not None and state.masks.asks_all(state.step + 1))
        total = 0.0
        own = state.samples()
        # With unequal shares a rank counts by its samples: n_r P / N.
        weight = len(own) * self.world.size / state.global_batch
        parts = own.tensor_split(-(-len(own) // self.job.train.batch_size)) if len(own) else ()
        with state.forward(state.step + 1):
            for number, part in enumerate(parts):
                total += self._micro_batch(part, weight * len(part) / len(own), number + 1 == len(parts))
        self.recorder.window.losses.append(total)

    def _micro_batch(self, samples: Tensor, share: float, last: bool) -> float:
        """Add one micro-batch to the gradients and return its share of the loss."""
        state = self.state
        with self.recorder.window.span("data"):
            batch = state.data.train_batch(samples)
            batch = tuple(part.to(self.world.transport.device) for part in batch)
        state.update.listen(last and state.streams)
        with self.recorder.window.span("forward_backward"):
            return state.engine.backward(state.engine.inputs(batch), share) * share

    def _evaluate(self) -> dict[str, float]:
        train, began = self.job.train, time.perf_counter()
        self.check_replicas()
        with self.recorder.spans.span("evaluation"), self.state.forward():
            self.evaluation = evaluate(
                self.state.engine, self.state.data, train.batch_size, train.evaluate_batches, self.world
            )
        self.began += time.perf_counter() - began  # evaluation does not count as training time
        return dict(self.evaluation)

    def check_replicas(self) -> None:
        """Compare all ranks' weights, whatever the job says about masks. Raises ReplicasDiffer."""
        with self._whole():
            agree_weights(self.state.engine.weights(), self.world.transport.gather_bytes, "raise")

    def _record(self, row: dict[str, float], report: Report | None) -> None:
        """Record one row of metrics, and look at its loss. Collective."""
        self.spiked = self.spikes.see(self.recorder.record(row, report))
        if not self.spiked:
            self.calm = self.state.step

    def _roll_back(self) -> None:
        """Go back to before the loss jumped, where there is a checkpoint, and take the data in another order.
        Collective."""
        state, said = self.state, f"alert: the loss has jumped from {self.spikes.mean:.4g} at step {self.state.step}"
        self.spiked = False
        self.saver.finish()
        order = state.sampler.order
        if order >= self.job.train.rollbacks:
            self.log(f"{said}; train.rollbacks are used up")
            self.spikes = Spikes(0.0)
        elif not resume(state, self.saver.keeper, self.log, until=self.calm):
            self.log(f"{said}, but there is no checkpoint to go back to")
            self.spikes = Spikes(self.job.train.spike)
        else:
            state.sampler.order = order + 1
            self.recorded, self.undo = state.step, None
            self.log(f"{said}: back at step {state.step}, with other data")
            self.recorder.tracker.close("finished")
            if self.world.rank == 0:
                with contextlib.suppress(OSError):  # they lie ahead, and are written over
                    drop_after(self.saver.keeper, state.step)
            self._open()
