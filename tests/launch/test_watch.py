"""`sparsetrain watch`, on runs that go on, have ended, are half written or hostile."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pathlib
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import lines, rows, write_run

from sparsetrain.cli import main
from sparsetrain.config.load import parse, to_yaml
from sparsetrain.launch.watch import left_seconds, look, watch_run
from sparsetrain.launch.watch_view import curve, draw, duration, sent_a_step


class Terminal(io.StringIO):
    """What a terminal would get."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    made = write_run(tmp_path / "runs/one")
    (made / "job.yaml").write_text(to_yaml(parse({"name": "one", "train": {"steps": 80}})))
    return made


def shown(folder: pathlib.Path) -> str:
    out = io.StringIO()
    draw(look(folder), out)
    return out.getvalue()


def test_one_frame_says_how_it_goes(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["watch", "one"])
    out = capsys.readouterr().out
    assert not ended.value.code and "\x1b" not in out
    assert out.startswith("one  finished\n")
    assert "step 60 of 80 (75%)" in out and "left" not in out.splitlines()[1]
    assert "15.6 kB a step, 96.5% less than dense (448 kB), 936 kB so far" in out
    assert "   3  vm  process 103  ended" in out
    assert "step 30: lost: rank 3 on vm: gone" in out and "step 50: slow: 0.4 at step 50" in out


def test_ranks_and_the_time_that_is_left_of_a_run_that_goes_on(folder: pathlib.Path) -> None:
    here = {"host": socket.gethostname(), "node": "a"}
    placed = [{"rank": 0, "pid": os.getpid(), **here}, {"rank": 1, "pid": 2**22 + 1, **here}]
    placed.append({"rank": 2, "pid": 1, "host": "far-away"})
    (folder / "launch.json").write_text(json.dumps({"placed": placed}))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = look(folder)
    assert found.standing.state == "running" and found.states == {0: "running", 1: "gone", 2: "placed"}
    assert found.left_s == pytest.approx(20 * 0.09)


def test_it_follows_a_run_to_its_end(folder: pathlib.Path) -> None:
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    out, code = Terminal(), []
    watching = threading.Thread(target=lambda: code.append(watch_run("one", False, out, 0.05)))
    watching.start()
    deadline = time.monotonic() + 30
    while "running" not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    lines(folder / "metrics.jsonl", rows(80))
    lock.close()
    watching.join(30)
    assert code == [0]
    assert "step 60 of 80 (75%" in out.getvalue() and "step 80 of 80 (100%)" in out.getvalue()


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("failed", 1), ("interrupted", 1), ("running", 1)])
def test_how_it_ended_is_the_exit_code(folder: pathlib.Path, state: str, code: int) -> None:
    (folder / "run.json").write_text(json.dumps({"status": state, "cause": "a \x1b[31mcause"}))
    out = Terminal()
    assert watch_run("one", False, out, 0.01) == code
    assert "\x1b[31mcause" not in out.getvalue()


def test_a_url_and_an_unknown_name_are_refused_in_a_line(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (("s3://bucket/run", "HOST:FOLDER by ssh, not behind a URL"), ("on", "did you mean 'one'")):
        with pytest.raises(SystemExit) as ended:
            main(["watch", name])
        err = capsys.readouterr().err
        assert ended.value.code == 2 and err.count("\n") == 1 and words in err


def test_a_half_written_folder_is_shown_as_far_as_it_goes(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "one" in shown(folder)
    for path in folder.iterdir():
        path.unlink()
        assert "one" in shown(folder)


@given(st.text(), st.text(), st.text())
def test_no_text_of_others_reaches_the_terminal_as_it_is(tmp_path_factory, one: str, two: str, three: str) -> None:
    folder = tmp_path_factory.mktemp("runs")
    evil = "\x1b]0;evil\x07\x9b31m\r\n"
    (folder / "run.json").write_text(
        json.dumps({"status": one + evil, "cause": two, "incidents": [{"at": 1, "cause": evil}]})
    )
    (folder / "launch.json").write_text(json.dumps({"placed": [{"rank": 1, "host": three + evil, "pid": 7}]}))
    lines(folder / "events.rank00000.jsonl", [{"at": 2, "alert": one + evil, "text": three + evil}])
    (folder / "job.yaml").write_text("[")
    text = shown(folder)
    assert all(line.isprintable() for line in text.split("\n")) and "evil" in text


@pytest.mark.parametrize("value", [[], {}, 7, "x", None, [[]], {"steps": "many"}, {"steps": 10**20}])
def test_other_shapes_of_its_files_do_no_harm(folder: pathlib.Path, value: object) -> None:
    for name in ("run.json", "launch.json", "env.json", "job.yaml"):
        (folder / name).write_text(json.dumps(value))
    assert "one" in shown(folder)
    (folder / "job.yaml").write_text(json.dumps({"train": value}))
    (folder / "run.json").write_text(json.dumps({"status": value, "cause": value, "incidents": value}))
    (folder / "launch.json").write_text(json.dumps({"placed": value}))
    assert "one" in shown(folder)


def test_pace_curve_and_duration() -> None:
    timed = [{"train/step": step, "job/wall_s": 2.0 * step} for step in (10, 20)]
    assert left_seconds(timed, 50) == 60.0 and left_seconds(timed[:1], 50) == 80.0
    assert left_seconds([], 50) is None and left_seconds(timed, None) is None
    bursts = [{"train/step": step, "comm/total_bytes": 1e3 * (step // 10)} for step in (10, 15, 20, 25, 30)]
    assert (
        sent_a_step(bursts) == 100.0 and sent_a_step(bursts[:1]) == 100.0 and sent_a_step([{"train/step": 3}]) is None
    )
    assert curve([0, 1, 2, 3]) == "▁▃▆█" and curve([1.0, 1.0]) == ""
    assert [duration(s) for s in (5, 65, 3700, 90_000, -3)] == ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h", "0 s"]
