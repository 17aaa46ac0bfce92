"""Checkpoints of several groups of ranks under one folder: only the newest group completes its own."""

from small import job

from sparsetrain.collective.world import World
from sparsetrain.engine import checkpoint
from sparsetrain.engine.pieces import capture
from sparsetrain.engine.saver import Saver
from sparsetrain.engine.state import build


def test_a_group_that_others_have_taken_over_from_completes_nothing(tmp_path):
    said = []
    states = [build(job(), World(generation=name)) for name in ("old", "new")]
    savers = []
    for state in states:
        savers.append(Saver(tmp_path, 1, state.world, state.update.assent, said.append))
        for each, own in zip(savers, states, strict=False):
            each.save(capture(own), own.step)
            each.close()
    assert {path.name for path in tmp_path.glob("step_*")} == {
        "step_00000000.new.unfinished",
        "step_00000000.old.unfinished",
    }
    savers[0].finish()
    assert said and set(said) == {
        "checkpoint of step 0 is not completed: another group of workers has taken over",
    }
    assert checkpoint.complete(tmp_path) == []
    savers[1].finish()
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000000"]
    assert [path.name for path in tmp_path.glob("*.unfinished")] == []
    assert len(set(said)) == 1


def test_a_disk_that_takes_no_file_is_said_by_the_checkpoint_alone(tmp_path):
    said = []
    (tmp_path / "file").write_text("")
    state = build(job(), World(generation="one"))
    saver = Saver(tmp_path / "file" / "checkpoints", 1, state.world, state.update.assent, said.append)
    saver.save(capture(state), state.step)
    saver.finish()
    assert len(said) == 1 and "is not written" in said[0]
