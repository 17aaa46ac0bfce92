"""Several groups of ranks under one run folder: only the newest completes its checkpoints."""

from small import job

from sparsetrain.collective.world import World
from sparsetrain.engine import checkpoint
from sparsetrain.engine.pieces import capture
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer


def test_a_group_that_others_have_taken_over_from_completes_nothing(tmp_path):
    said: list[str] = []
    old, new = (Trainer(build(job(), World(generation=name)), tmp_path, said.append) for name in ("old", "new"))
    for trainer in (old, new):
        trainer.saver.save(capture(trainer.state), 1)
        trainer.saver.finish()
        done = checkpoint.complete(tmp_path / "checkpoints")
        assert [path.name for path in done] == (["step_00000001"] if trainer is new else [])
    assert said == ["checkpoint of step 1 is not completed: another group of workers has taken over"]


def test_without_a_name_there_is_no_fence(tmp_path):
    one, other = (Trainer(build(job(), World()), tmp_path, lambda line: None) for _ in range(2))
    for trainer in (other, one):
        trainer.saver.save(capture(trainer.state), 1)
        trainer.saver.finish()
    assert [path.name for path in checkpoint.complete(tmp_path / "checkpoints")] == ["step_00000001"]
