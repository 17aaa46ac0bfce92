import json
import os
import random
import threading
import time

import pytest

from sparsetrain.track.spans import NoSpans, Spans
from sparsetrain.track.trace import merge


def spans(merged):
    return [event for event in merged.tree["traceEvents"] if event["ph"] == "X"]


def names(merged, kind):
    return {event["args"]["name"] for event in merged.tree["traceEvents"] if event["name"] == kind}


def write(folder, rank, *lines):
    (folder / "trace").mkdir(exist_ok=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / f"trace/rank{rank:05d}.jsonl").write_text(text)


def head(rank, machine, wall, clock):
    return {"trace": 1, "rank": rank, "node": f"n{rank}", "machine": machine, "pid": 1, "wall": wall, "clock": clock}


def test_spans_of_two_ranks_threads_and_attempts_come_together(tmp_path):
    for attempt in range(2):
        for rank in range(2):
            trace = Spans(tmp_path, rank, f"node{rank}")
            with trace.span("outer"), trace.span("inner"):
                time.sleep(0.002)
            other = threading.Thread(target=lambda trace=trace: trace.mark("wire", 1.0, 1.5), name="wire-0")
            other.start()
            other.join()
            trace.met(attempt)
            trace.close()
    merged = merge(tmp_path)
    assert merged.spans == len(spans(merged)) == 12 and merged.ranks == 2 and not merged.shifts
    assert names(merged, "process_name") == {"rank 0 (node0)", "rank 1 (node1)"}
    assert "MainThread" in names(merged, "thread_name")
    inner = next(event for event in spans(merged) if event["name"] == "inner")
    outer = next(event for event in spans(merged) if event["name"] == "outer")
    assert outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 2
    assert inner["dur"] >= 2000 and min(event["ts"] for event in spans(merged)) == 0
    json.dumps(merged.tree, allow_nan=False)


def test_one_machine_has_one_clock_whatever_its_wall_clock_says_meanwhile(tmp_path):
    write(tmp_path, 0, head(0, "m", 1000.0, 50.0), {"spans": [["a", 1, 0, 10]]})
    write(tmp_path, 1, head(1, "m", 9000.0, 51.0), {"spans": [["b", 1, 0, 10]]})
    a, b = sorted(spans(merge(tmp_path)), key=lambda event: event["pid"])
    assert b["ts"] - a["ts"] == 1e6


def test_another_machine_is_shifted_by_the_median_of_the_meetings(tmp_path):
    met = [{"met": step, "at": step * 1e6} for step in range(1, 6)]
    late = [{"met": step, "at": step * 1e6 + (4e5 if step == 3 else 7)} for step in range(1, 7)]
    write(tmp_path, 0, head(0, "m", 1000.0, 50.0), {"spans": [["a", 1, 5e6, 10]]}, *met)
    write(tmp_path, 1, head(1, "other", 1002.5, 7.0), {"spans": [["b", 1, 5e6, 10]]}, *late)
    merged = merge(tmp_path)
    a, b = sorted(spans(merged), key=lambda event: event["pid"])
    assert abs(b["ts"] - a["ts"]) < 10 and merged.shifts == {"n1": pytest.approx(2.500007)}


def test_alerts_are_moments(tmp_path):
    write(tmp_path, 0, head(0, "m", 1000.0, 50.0), {"spans": [["a", 1, 0, 10]]})
    (tmp_path / "events.rank00000.jsonl").write_text('{"at": 1000.5, "step": 3, "alert": "slow", "text": "x"}\n{"at')
    (moment,) = [event for event in merge(tmp_path).tree["traceEvents"] if event["ph"] == "i"]
    assert moment["name"] == "slow" and moment["ts"] == 5e5


def test_a_file_has_a_limit_and_a_missing_folder_costs_nothing(tmp_path):
    trace = Spans(tmp_path, 0, limit=2000)
    for step in range(200):
        trace.mark("x", 0.0, 1.0)
        trace.met(step)
        trace.flush()
    assert trace.path.stat().st_size <= 2100 and trace.path.read_text().endswith('{"full":true}\n')
    away = Spans(tmp_path / "missing", 3)
    away.mark("x", 0.0, 1.0)
    away.close()
    assert not (tmp_path / "missing").exists()
    for nothing in (NoSpans(),):
        with nothing.span("x"):
            nothing.mark("x", 0.0, 1.0)
        nothing.met(1)
        nothing.flush()
        nothing.close()


def test_a_disk_that_cannot_be_written_ends_the_trace_alone(tmp_path):
    (tmp_path / "trace").write_text("in the way")
    trace = Spans(tmp_path, 0)
    trace.mark("x", 0.0, 1.0)
    trace.close()
    assert not trace.on


HOSTILE = [
    "",
    "\n\n{",
    "[" * 100_000 + "\n",
    '{"trace": 1, "rank": 0, "wall": NaN, "clock": Infinity}\n{"spans": [["a", 1, 0, 1]]}\n',
    '{"trace": 1, "wall": 1e300, "clock": -1e300}\n',
    '{"trace": 1, "wall": "now", "clock": null}\n',
    '{"spans": [["a", 1, 0, 1]]}\n',
    "null\n[]\n3\n",
]
LINES = [
    {"spans": [["a", 1, 0], [1, 2, 3, 4], ["b", "x", 0, 1], ["c", 1, 1e300, 1], ["d", 1, 0, -5], None]},
    {"spans": [["e", 1, 0, True]]},
    {"spans": {"a": 1}},
    {"spans": [["x" * 10_000, 10**18, 1, 10**400]]},
    {"met": "x", "at": 1},
    {"met": 1, "at": None},
    {"thread": 1, "name": 5},
    {"thread": 1, "name": "\x00" * 10_000},
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_heads_give_no_spans(tmp_path, text):
    write(tmp_path, 0, text)
    assert merge(tmp_path).spans == 0


def test_hostile_lines_are_left_out(tmp_path):
    write(tmp_path, 0, head(0, "m", 1000.0, 50.0), *LINES, {"spans": [["good", 1, 0, 1]]}, '{"spans": [["cut", 1')
    (tmp_path / "trace/rankx.jsonl").write_text("x")
    (tmp_path / "trace/rank00001.jsonl").mkdir()
    os.mkfifo(tmp_path / "trace/rank00002.jsonl")
    merged = merge(tmp_path)
    assert [event["name"] for event in spans(merged)] == ["good"]
    json.dumps(merged.tree, allow_nan=False)


def test_random_bytes_never_break_the_merge(tmp_path):
    draw = random.Random(0)
    lines = (head(0, "m", 1.0, 2.0), {"spans": [["a", 1, 0, 1]] * 5}, *LINES)
    good = "".join(json.dumps(line) + "\n" for line in lines)
    whole = 0
    for _ in range(200):
        data = bytearray(good.encode())
        for _ in range(draw.randrange(1, 30)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "trace").mkdir(exist_ok=True)
        (tmp_path / "trace/rank00000.jsonl").write_bytes(bytes(data))
        merged = merge(tmp_path)
        json.dumps(merged.tree, allow_nan=False)
        assert len(spans(merged)) == merged.spans
        assert all(event["dur"] >= 0 and isinstance(event["name"], str) for event in spans(merged))
        whole += merged.spans == 5
    assert 0 < whole < 200  # some of the changes do harm, and some do none
