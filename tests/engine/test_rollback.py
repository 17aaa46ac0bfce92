"""Loss spikes: off by default; else back to before the jump, and other data."""

import json
import pathlib

from small import job

from sparsetrain.collective.world import World
from sparsetrain.engine import checkpoint
from sparsetrain.engine.pieces import Saved
from sparsetrain.engine.rollback import KNOWN, Spikes
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer


def test_a_spike_is_what_jumps_over_the_running_mean():
    spikes = Spikes(2.0)
    assert not any(spikes.see(loss) for loss in (5.0, 4.0, 3.5, 3.0, 3.0))
    mean = spikes.mean
    assert spikes.see(2.1 * mean) and spikes.see(float("nan")) and spikes.mean == mean
    assert not spikes.see(1.9 * mean)


def test_nothing_is_a_spike_when_it_is_switched_off_or_too_early():
    assert not any(Spikes(0.0).see(loss) for loss in (1.0, 100.0, float("inf")))
    early = Spikes(2.0)
    assert not any(early.see(10.0**n) for n in range(KNOWN - 1))


class Jumping(Trainer):
    """A trainer whose loss jumps while it takes the data in the first order."""

    def _forward_backward(self) -> None:
        super()._forward_backward()
        if self.state.sampler.order < self.jumps and self.state.step in (7, 8, 9):
            self.recorder.window.losses[-1] *= 100.0


def run(folder: pathlib.Path, jumps: int, *overrides: str) -> tuple[Jumping, list[str]]:
    said: list[str] = []
    options = ("train.spike=3.0", "log.every=1", "checkpoint.every=2", "checkpoint.keep=9", *overrides)
    trainer = Jumping(build(job(*options), World()), folder, said.append)
    trainer.jumps = jumps
    trainer.run()
    trainer.close("finished")
    return trainer, said


def test_the_run_goes_back_and_takes_other_data(tmp_path):
    trainer, said = run(tmp_path, 1)
    assert any("the loss has jumped" in line and "back at step 6, with other data" in line for line in said)
    assert (trainer.state.step, trainer.state.sampler.order) == (12, 1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/step"] for row in rows] == list(range(1, 13))
    assert max(row["train/loss"] for row in rows) < 10
    saved = Saved(checkpoint.complete(tmp_path / "checkpoints")[-1]).about()
    assert (saved.step, saved.order) == (12, 1)


def test_it_goes_back_only_so_often(tmp_path):
    trainer, said = run(tmp_path, 9, "train.rollbacks=2")
    assert sum("with other data" in line for line in said) == 2
    assert any("train.rollbacks are used up" in line for line in said)
    assert trainer.state.step == 12


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    trainer, said = run(tmp_path, 1, "checkpoint.every=0")
    assert any("no checkpoint to go back to" in line for line in said)
    assert trainer.state.step == 12
