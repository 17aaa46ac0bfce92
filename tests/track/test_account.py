import json

from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import write_run

from sparsetrain.track.account import account
from sparsetrain.track.page import gather, page

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = {
    "run.json": ("status", "cause", "began", "ended", "incidents"),
    "launch.json": ("workers", "launcher", "placed"),
    "env.json": ("versions",),
    "regimes.json": ("decisions",),
}
INNER = {
    key: JSON
    for key in ("at", "step", "seconds", "lost", "cause", "rank", "host", "node", "pid", "exchange", "chosen", "why")
}
CANDIDATES = st.lists(
    st.fixed_dictionaries({}, optional={k: JSON for k in ("name", "predicted_s", "measured_s")}) | JSON
)
ROWS = st.fixed_dictionaries({}, optional={**INNER, "candidates": CANDIDATES | JSON, "alert": JSON, "text": JSON})


def test_everything_that_a_run_writes_is_found(tmp_path):
    found = account(write_run(tmp_path / "one"))
    assert (found.state, found.workers, found.launcher, found.missing) == ("finished", 4, "ray", ())
    assert [rank.rank for rank in found.ranks] == [0, 1, 2, 3]
    assert [(event.kind, event.fault, event.step) for event in found.events] == [
        ("lost", True, 30),
        ("slow", False, 50),
    ]
    last = found.decisions[-1]
    assert last.exchange == 40 and [each.chosen for each in last.candidates] == [False, True, False]
    assert last.candidates[2].measured is None and last.candidates[1].predicted == 0.05


@settings(max_examples=60)
@given(st.data())
def test_whatever_the_files_hold_there_is_a_page(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("hostile")
    lists = JSON | st.lists(ROWS | JSON, max_size=4)
    for name, keys in KEYS.items():
        value = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(keys, lists)) | JSON)
        (folder / name).write_text(json.dumps(value))
    for name in ("events.rank00000.jsonl", "layers.jsonl", "metrics.jsonl"):
        values = data.draw(st.lists(ROWS | JSON | st.dictionaries(st.text(), st.floats()), max_size=4))
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    assert page(gather([folder])).endswith("</html>\n")


def test_what_is_missing_or_broken_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "launch.json").mkdir()
    found = account(tmp_path)
    assert found.missing == ("run.json is broken", "launch.json is not there", "env.json is not there")
    assert found.state == "unknown" and found.events == ()
