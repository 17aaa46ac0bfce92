import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import job
from stores import KINDS, store_of

from sparsetrain.collective.world import World
from sparsetrain.engine.checkpoint import About, name_of
from sparsetrain.engine.keeping import superfluous
from sparsetrain.engine.pieces import capture
from sparsetrain.engine.saver import Saver
from sparsetrain.engine.state import build
from sparsetrain.engine.store import Stored
from sparsetrain.engine.trainer import train


def quiet(line: str) -> None:
    return


@given(
    losses=st.lists(st.none() | st.floats(0, 9), max_size=12),
    keep=st.integers(1, 5),
    best=st.integers(0, 4),
)
def test_the_newest_and_the_best_stay(losses, keep, best):
    named = {name_of(step): loss for step, loss in enumerate(losses)}
    going = superfluous(named, keep, best)
    staying = [name for name in named if name not in going]
    assert staying[-keep:] == list(named)[-keep:]
    assert len(staying) <= keep + best
    known = sorted(loss for loss in losses if loss is not None)
    kept = sorted(named[name] for name in staying if named[name] is not None)
    assert kept[: min(best, len(known))] == known[:best]
    for name in going:
        assert len(losses) > keep
        assert named[name] is None or sum(named[s] is not None and named[s] <= named[name] for s in staying) >= best


def test_of_equal_losses_the_newer_stays():
    assert superfluous({"a": 1.0, "b": 1.0, "c": 2.0, "d": None}, keep=1, best=1) == ["a", "c"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_keeps_its_best(tmp_path, kind):
    state = build(job(), World())
    store = store_of(kind, tmp_path)
    said = []
    saver = Saver(store, job("checkpoint.keep=1", "checkpoint.best=2"), World(), state.update.assent, said.append)
    for step, loss in enumerate([4.0, 2.0, float("nan"), 3.0, None, 2.5, 5.0]):
        pieces = capture(state)
        pieces.told = About(**{**vars(pieces.told), "step": step})
        saver.save(pieces, step, loss)
        saver.finish()
    assert [Stored(store, name).about().eval_loss for name in store.complete()] == [2.0, 2.5, 5.0]
    assert said == []


def test_only_an_evaluation_at_the_very_step_is_its_loss(tmp_path):
    options = ("train.steps=6", "train.evaluate_every=3", "checkpoint.every=2", "checkpoint.keep=9")
    result = train(job(*options), World(), tmp_path, quiet)
    losses = [json.loads(path.read_text())["eval_loss"] for path in sorted(tmp_path.glob("checkpoints/*/state.json"))]
    assert losses == [None, None, result["eval/loss"]]
