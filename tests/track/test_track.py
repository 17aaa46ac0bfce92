import json
import logging
import pathlib
import sys

import pytest

from sparsetrain.track.compare import compare, figures
from sparsetrain.track.console import format_row, size
from sparsetrain.track.jsonl import JsonlSink, read
from sparsetrain.track.report import write_report
from sparsetrain.track.sink import Tracker
from sparsetrain.track.wandb import resolve_mode


def rows(loss: float, gradient: float, sparse: bool) -> list[dict]:
    found = []
    for step in range(10, 101, 10):
        row = {
            "train/step": step,
            "train/loss": 5 - step / 50,
            "comm/gradient_bytes": gradient * step,
            "comm/mask_bytes": 7.0 * step if sparse else 0.0,
            "comm/total_bytes": (gradient + 7) * step,
            "time/step_s": 0.1,
            "time/exchange_s": 0.02,
            "time/forward_backward_s": 0.07,
            "time/optimizer_s": 0.01,
            "time/data_s": 0.0,
            "grad/residual_norm": step / 10,
            "job/wall_s": step / 10,
        }
        if step % 50 == 0:
            row |= {"eval/loss": loss, "eval/bits_per_byte": loss / 0.6931}
        if sparse:
            row |= {"mask/sparsity": 0.9, "mask/epoch": 1}
        found.append(row)
    return found


def folder(path: pathlib.Path, name: str, *arguments) -> pathlib.Path:
    (path / name).mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows(*arguments))
    (path / name / "metrics.jsonl").write_text(text)
    return path / name


def test_the_table_shows_what_was_saved_and_what_it_cost(tmp_path):
    runs = [folder(tmp_path, "dense", 2.0, 1000.0, False), folder(tmp_path, "sparse", 2.1, 10.0, True)]
    table = {line[:42].strip(): line[42:].split("  ") for line in compare(runs).splitlines()}
    cells = {title: [cell.strip() for cell in row if cell.strip()] for title, row in table.items()}
    assert cells["validation loss (nats)"] == ["2.0000", "2.1000"]
    assert cells["against the first"] == ["+0.00%", "+5.00%"]
    assert cells["share of the first"] == ["100.000%", "1.000%"]
    assert cells["mask bytes sent a step, whole run"] == ["0 B", "7 B"]
    assert cells["sparsity of masked weights"] == ["0 (dense)", "90.00%"]
    assert figures(runs[1])["comm/gradient_bytes_steady"] == 10.0


@pytest.mark.parametrize(
    "text",
    [
        '{"train/step": "ten"}',
        '{"train/step": null}',
        '{"train/step": -3, "eval/loss": 1}',
        '{"train/step": NaN}',
        "[" * 100_000,
        '{"train/step": 0, "eval/loss": 0}',
        '{"train/step": 7}',
    ],
)
def test_hostile_rows_never_break_the_table_or_the_report(tmp_path, text):
    good = folder(tmp_path, "dense", 2.0, 1000.0, False)
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile/metrics.jsonl").write_text(text + "\n")
    for runs in ([good, tmp_path / "hostile"], [tmp_path / "hostile", good]):
        assert "steps" in compare(runs)
        assert write_report(runs, tmp_path / "report").is_file()


def test_a_full_disk_delays_rows_and_loses_none(tmp_path):
    sink = JsonlSink(JsonlSink.Config(), tmp_path / "metrics.jsonl", 0)
    said: list[str] = []
    tracker = Tracker({"metrics.jsonl": lambda: sink}, said.append)
    tracker.log({"train/step": 1})

    class Full:
        """Takes five bytes, then has no room."""

        def __init__(self, stream):
            self.stream, self.room = stream, 5

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            taken, self.room = self.room, 0
            return self.stream.write(data[:taken])

        def truncate(self, size):
            return self.stream.truncate(size)

    usual, sink.stream = sink.stream, Full(sink.stream)
    tracker.log({"train/step": 2})
    tracker.log({"train/step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"train/step": 1}\n'
    sink.stream = usual
    tracker.log({"train/step": 4})
    tracker.close("finished")
    assert [row["train/step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert len(said) == 1 and said[0].startswith("metrics.jsonl cannot be written now and is tried again: ")


def test_a_run_by_itself_is_compared_with_nothing(tmp_path):
    table = compare([folder(tmp_path, "sparse", 2.1, 10.0, True)])
    assert "validation loss" in table and "compression" not in table and "first" not in table


def test_a_run_without_rows_has_dashes(tmp_path):
    (tmp_path / "empty").mkdir()
    runs = [folder(tmp_path, "dense", 2.0, 1000.0, False), tmp_path / "empty"]
    assert " -" in compare(runs)


def test_the_report_is_a_page_a_picture_and_a_text(tmp_path):
    runs = [folder(tmp_path, "dense", 2.0, 1000.0, False), folder(tmp_path, "sparse", 2.1, 10.0, True)]
    assert write_report(runs, tmp_path / "report") == tmp_path / "report/report.html"
    picture = tmp_path / "report/report.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 20_000
    assert "validation loss" in (tmp_path / "report/report.txt").read_text()


def test_a_report_without_matplotlib_says_why_it_has_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report([folder(tmp_path, "dense", 2.0, 1000.0, False)], tmp_path / "report")
    said = "no report.png: matplotlib is not installed (extra `report`)\n"
    assert capsys.readouterr().err == said and (tmp_path / "report/report.txt").read_text().endswith(said)


def test_rows_after_the_resumed_step_are_cut_off_and_a_torn_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"train/step": 1}\n{"train/step": 2}\n{"train/step": 3, "train/lo')
    assert [row["train/step"] for row in read(path)] == [1, 2]
    sink = JsonlSink(JsonlSink.Config(), path, 1)
    sink.log({"train/step": 2, "train/loss": 1.0})
    sink.close("finished")
    assert [row["train/step"] for row in read(path)] == [1, 2]
    assert len(path.read_text().splitlines()) == 2


def test_a_sink_that_fails_is_switched_off_with_one_warning(caplog):
    class Broken:
        calls = 0

        def log(self, row):
            Broken.calls += 1
            raise OSError("disk full")

        def close(self, status):
            raise AssertionError("never reached")

    seen = []

    class Good(Broken):
        def log(self, row):
            seen.append(row)

        def close(self, status):
            seen.append(status)

    def refuses():
        raise RuntimeError("cannot open")

    with caplog.at_level(logging.WARNING):
        tracker = Tracker({"broken": Broken, "good": Good, "shut": refuses})
        for step in range(3):
            tracker.log({"train/step": step})
        tracker.close("finished")
    assert Broken.calls == 1 and len(seen) == 4
    assert [record.message for record in caplog.records] == [
        "shut is switched off for this run: RuntimeError: cannot open",
        "broken is switched off for this run: OSError: disk full",
    ]


@pytest.mark.parametrize(
    ("wanted", "environment", "netrc", "expected"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "x"}, "", "online"),
        ("auto", {}, "machine api.wandb.ai login user password p", "online"),
        ("auto", {}, "machine example.org login user password p", "offline"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "", "offline"),
        ("disabled", {"WANDB_API_KEY": "x"}, "", "disabled"),
    ],
)
def test_wandb_is_online_only_with_a_key(tmp_path, wanted, environment, netrc, expected):
    (tmp_path / "netrc").write_text(netrc)
    assert resolve_mode(wanted, environment, tmp_path / "netrc") == expected


def test_lines_are_short_and_sizes_have_units():
    line = format_row(
        {"train/step": 50, "train/loss": 2.5, "comm/gradient_bytes_per_step": 10400.0, "time/step_s": 0.1}
    )
    assert line == "step    50  loss 2.5000  gradients 10.4 kB/step  100 ms/step"
    assert [size(n) for n in (12, 3.37e6, 5e13)] == ["12 B", "3.37 MB", "50 TB"]
