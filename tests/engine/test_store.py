import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import KINDS, contents, damage, everything, publish, put, store_of

from sparsetrain.engine.checkpoint import CheckpointError, name_of
from sparsetrain.engine.keeping import Keeper, problem
from sparsetrain.engine.remote_store import RemoteStore
from sparsetrain.engine.store import Stored, StoreError

FILE = "residual.rank00000.safetensors"


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    return store_of(request.param, tmp_path)


def test_a_checkpoint_is_there_once_it_is_published(store):
    assert store.complete() == store.unfinished() == []
    parts = put(store, 500, ranks=2)
    assert store.complete() == [] and len(store.unfinished()) == 1
    assert store.peek(name_of(500), FILE) == b"text"
    assert store.peek(name_of(500), "nothing") is None
    store.publish(name_of(500), parts)
    assert store.complete() == ["step_00000500"] and store.unfinished() == []
    assert Stored(store, name_of(500)).parts() == parts
    assert set(store.sizes(name_of(500))) == {*parts, "COMPLETE"}
    with store.fetch(name_of(500), FILE) as path:
        assert path.read_text() == "text"
    store.remove(name_of(500))
    assert everything(store) == set()


def test_checkpoints_come_in_the_order_of_their_steps(store):
    for step in (7, 123_456_789, 40):
        publish(store, step)
    assert store.complete() == ["step_00000007", "step_00000040", "step_123456789"]


def test_rests_of_attempts_before_the_newest_checkpoint_go_and_later_ones_stay(store):
    put(store, 3)
    put(store, 9, ranks=2)
    assert len(store.unfinished()) == 2
    publish(store, 5)
    assert [name.removesuffix(".unfinished") for name in store.unfinished()] == ["step_00000009"]
    publish(store, 9, ranks=1)
    assert store.unfinished() == [] and store.complete() == ["step_00000005", "step_00000009"]


def test_what_lost_its_mark_is_nobodys_rest_and_stays(store):
    publish(store, 3)
    damage(store, name_of(3), "COMPLETE")
    publish(store, 5)
    store.drop(name_of(3))
    assert store.unfinished() == ["step_00000003"] and store.complete() == ["step_00000005"]


def test_a_damaged_checkpoint_is_set_aside_when_its_step_is_written_anew(store):
    for number in range(3):
        publish(store, 4, text=f"text {number}")
        if number < 2:
            damage(store, name_of(4), FILE, b"damaged")
    assert problem(store, name_of(4)) == ""
    assert everything(store) == {"step_00000004", "step_00000004.aside", "step_00000004.aside.2"}
    assert store.complete() == ["step_00000004"] and store.unfinished() == []


@pytest.mark.parametrize(
    ("data", "says"),
    [(None, "is missing"), (b"TEXT", "is not the file that was saved"), (b"longer text", "has 11 bytes, not 4")],
)
def test_damage_is_named_with_its_file(store, data, says):
    publish(store, 1)
    assert problem(store, name_of(1)) == ""
    damage(store, name_of(1), FILE, data)
    assert FILE in problem(store, name_of(1)) and says in problem(store, name_of(1))
    with pytest.raises(CheckpointError, match=FILE):
        Stored(store, name_of(1)).compare(FILE)


def test_a_mark_that_cannot_be_read_is_damage(store):
    publish(store, 1)
    damage(store, name_of(1), "COMPLETE", b'{"blake2b": [')
    assert problem(store, name_of(1)).startswith("COMPLETE: is damaged (")


@pytest.mark.parametrize(
    "told",
    [
        {"blake2b": {"a\0b": ""}},
        {"blake2b": {"../job.yaml": ""}},
        {"blake2b": {}, "time": 10**400},
        {"blake2b": {}, "time": float("inf")},
        {"blake2b": {}, "time": float("nan")},
        {"blake2b": {}, "time": 1e30},
        {"blake2b": {}, "time": -1},
    ],
    ids=str,
)
def test_a_mark_with_strange_names_or_times_is_damage(store, told):
    publish(store, 1)
    damage(store, name_of(1), "COMPLETE", json.dumps(told).encode())
    assert problem(store, name_of(1)).startswith("COMPLETE: is damaged (")


@pytest.mark.parametrize("lacking", ["state.json", "model.safetensors"])
def test_one_that_names_too_little_is_damaged_and_does_not_count(store, lacking):
    for step in (1, 2):
        publish(store, step)
    parts = {file: part.digest for file, part in Stored(store, name_of(2)).parts().items() if file != lacking}
    damage(store, name_of(2), "COMPLETE", json.dumps({"blake2b": parts}).encode())
    keeper = Keeper(store, 1, 0, lambda line: None)
    keeper.look()
    assert keeper.prune() == [] and keeper.damaged == {name_of(2)}


def test_damaged_checkpoints_do_not_count_and_stay(store):
    for step in range(1, 6):
        publish(store, step)
    damage(store, name_of(2), FILE, b"TEXT")
    damage(store, name_of(4), FILE)
    said = []
    keeper = Keeper(store, 1, 0, said.append)
    keeper.look()
    assert keeper.prune(dry=True) == ["step_00000001", "step_00000003"]
    assert len(store.complete()) == 5
    keeper.prune()
    assert store.complete() == ["step_00000002", "step_00000004", "step_00000005"]
    assert len(said) == 2 and "step_00000002 is damaged and stays" in said[0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    acts=st.lists(st.tuples(st.sampled_from(["put", "publish", "damage", "remove"]), st.integers(0, 5)), max_size=12),
    kind=st.sampled_from(KINDS),
)
def test_nothing_damaged_is_ever_lost(tmp_path_factory, acts, kind):
    """Whatever happens in whatever order: complete is what was published and not removed; nothing damaged is lost."""
    store = store_of(kind, tmp_path_factory.mktemp("store"))
    complete: dict[str, int] = {}  # name -> which act published it
    damaged: set[int] = set()
    for number, (act, step) in enumerate(acts):
        name = name_of(step)
        if act == "put":
            put(store, step, text=f"text {number}")
            if kind != "local":  # objects have no rename: what was there of this step is set aside at once
                complete.pop(name, None)
        elif act == "publish":
            publish(store, step, text=f"text {number}")
            complete[name] = number
        elif name in complete and act == "damage":
            damage(store, name, FILE, b"damaged")
            damaged.add(complete[name])
        elif name in complete and act == "remove" and complete[name] not in damaged:
            store.remove(name)
            del complete[name]
        assert set(store.complete()) == set(complete)
    for name, number in complete.items():
        assert bool(problem(store, name)) == (number in damaged)
    assert contents(store).count(b"damaged") == len(damaged)


class Silent:
    """A file system that never answers."""

    def __init__(self):
        self.asked = threading.Event()

    def invalidate_cache(self):
        self.asked.wait()


def test_a_store_that_does_not_answer_is_given_up():
    store = RemoteStore("memory://nowhere/run", 0.2)
    silent = Silent()
    store._opened = silent, "run"
    with pytest.raises(StoreError, match=r"memory://nowhere/run has not answered for 0\.2 s, listing"):
        store.complete()
    silent.asked.set()


def test_what_fails_is_said_without_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    store = RemoteStore("memory://x/run", 5)

    def failing(fs, root):
        raise ValueError("signed with wJalrXUtnFEMI")

    with pytest.raises(StoreError, match=r"ValueError: signed with \*\*\*"):
        store._ask("listing", failing)
