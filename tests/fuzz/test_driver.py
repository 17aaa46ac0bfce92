"""The fuzzer itself: what a parser does that it should not is seen, kept and told apart."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

from tests.fuzz import coverage, engine
from tests.fuzz.engine import Fuzzer
from tests.fuzz.mutations import changed, changed_value
from tests.fuzz.slot import ROOM, Slot
from tests.fuzz.target import Target
from tests.fuzz.watch import _wait

ROOT = pathlib.Path(__file__).parents[2]


class Fragile(Target):
    """Refuses with ValueError, and fails with LookupError on a byte that only coverage leads to."""

    refusals = (ValueError,)
    traced = 1

    def seeds(self):
        return [b"aaaa"]

    def read(self, case):
        if case[:1] != b"b":
            raise ValueError("first")
        if case[1:2] != b"c":
            raise ValueError("second")
        if case[2:3] == b"d":
            raise LookupError("found")
        return None


def test_it_gets_behind_one_check_after_another_and_keeps_what_it_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "PACKAGE", str(pathlib.Path(__file__).parent))
    tally = Fuzzer(Fragile(), seed=1, out=tmp_path).run(60_000)
    assert list(tally.findings) and all(where.startswith("LookupError at test_driver.py:") for where in tally.findings)
    case = next(tmp_path.glob("*.case")).read_bytes()
    with pytest.raises(LookupError):
        Fragile().read(case)
    assert "found" in next(tmp_path.glob("*.txt")).read_text()


def test_a_refusal_for_want_of_memory_is_a_finding():
    class Greedy(Fragile):
        def read(self, case):
            raise ValueError("cannot allocate 4 TiB")

    assert Fuzzer(Greedy(), seed=1).run(3).findings == {"ValueError at outside the package": 3}


def test_changes_are_decided_by_the_generator():
    import random

    def some(seed):
        draw = random.Random(seed)
        return [changed(b"0123456789", [b"abc"], draw) for _ in range(200)], [
            repr(changed_value({"a": [1, {"b": 2}]}, draw)) for _ in range(200)
        ]

    assert some(1) == some(1) != some(2)
    assert len(set(some(1)[0])) > 100 and len(set(some(1)[1])) > 30


def test_the_slot_holds_a_case_for_who_looks_on(tmp_path):
    one, two = Slot(tmp_path / "slot"), Slot(tmp_path / "slot")
    one.put(7, b"abc")
    assert two.get() == (7, b"abc")
    one.put(8, bytes(2 * ROOM))
    assert two.get() == (8, bytes(ROOM))


@pytest.mark.parametrize(
    ("does", "says"),
    [("time.sleep(60)", "hang"), ("os.kill(os.getpid(), 11)", "process ended with -11"), ("pass", "")],
)
def test_a_process_that_dies_or_stays_with_a_case_is_told_of(tmp_path, does, says):
    slot = Slot(tmp_path / "slot")
    text = f"""
        import os, pathlib, time
        from tests.fuzz.slot import Slot
        slot = Slot(pathlib.Path({str(tmp_path / "slot")!r}))
        slot.put(1, b"abc")
        {does}
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], cwd=ROOT)
    try:
        assert _wait(child, slot, limit=1.0) == says
        assert slot.get() == (1, b"abc")
    finally:
        child.kill()
        child.wait()


def test_the_command_reads_a_case_again(tmp_path):
    path = tmp_path / "x.case"
    path.write_bytes(b"")
    command = [sys.executable, "-m", "tests.fuzz", "json", "--replay", str(path)]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == "(0, None)\n"


def test_findings_have_names_that_are_files(tmp_path):
    engine.write_finding(tmp_path / "out", "../x at a/b.py:3", b"case", "text")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "---x-at-a-b-py-3.case",
        "---x-at-a-b-py-3.txt",
    ]
