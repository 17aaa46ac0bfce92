from __future__ import annotations

import io

import pytest

from sparsetrain.config.load import load_job
from sparsetrain.launch.show import progress
from sparsetrain.launch.signals import Stop, Stopped

ROW = {"train/step": 200, "train/loss": 2.5, "eval/loss": 2.25}


class Terminal(io.StringIO):
    """Takes text as a terminal would."""

    def isatty(self) -> bool:
        return True


def test_elsewhere_each_row_is_a_line() -> None:
    stream = io.StringIO()
    with progress(load_job("quickstart"), stream, Stop()) as shown:
        shown.line("data: [text]")
        shown.row(ROW)
    assert stream.getvalue().splitlines() == ["data: [text]", "step   200  loss 2.5000  validation 2.2500"]


def test_a_terminal_shows_a_bar_and_keeps_the_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with progress(load_job("quickstart"), stream, Stop()) as shown:
        shown.line("data: [text]")
        shown.row(ROW)
        shown.row({"train/step": 210, "train/loss": 2.125})
    text = stream.getvalue()
    assert "data: [text]" in text and "step   200  loss 2.5000  validation 2.2500\n" in text
    assert "step   210  loss 2.1250" in text and "━" in text


def test_a_stop_is_passed_on() -> None:
    stop = Stop()
    stop.name = "SIGINT"
    with progress(load_job("quickstart"), io.StringIO(), stop) as shown, pytest.raises(Stopped):
        shown.check()
