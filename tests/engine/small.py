"""A tiny job for tests of the loop."""

from __future__ import annotations

import pytest

from sparsetrain.config.job import Job
from sparsetrain.config.load import apply_overrides, parse
from sparsetrain.engine.trainer import Trainer

TREE = {
    "name": "tiny",
    "model": {"name": "gpt", "layers": 1, "width": 32, "heads": 2, "context": 16},
    "data": {"name": "text", "context": 16},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "train": {"steps": 12, "batch_size": 2, "evaluate_every": 6, "evaluate_batches": 4},
    "exchange": {"density": 0.05, "dense_below": 100},
    "masks": {"method": "rigl", "sparsity": 0.8, "every": 4, "end": 0.9},
    "log": {"every": 3, "wandb": {"mode": "disabled"}},
}


def job(*overrides: str) -> Job:
    return parse(apply_overrides(TREE, overrides))


class Killed(BaseException):
    """Stands for a kill: nothing of the run may catch it."""


def run_and_die(trainer: Trainer, step: int) -> None:
    """Train until `step` steps are finished and their checkpoints written, and die in the next one."""
    forward = trainer._forward_backward

    def dying() -> None:
        if trainer.state.step == step:
            trainer.saver.finish()
            raise Killed
        forward()

    trainer._forward_backward = dying
    with pytest.raises(Killed):
        trainer.run()
