"""A job in Slurm's hands, with programs that answer as Slurm's do; tests/e2e/test_slurm.py has the real ones."""

from __future__ import annotations

import io
import os
import pathlib
import stat

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.launch import slurm_job

ANSWER = "JobId=7 JobState={state} Reason=None\\n   ExitCode={code} DerivedExitCode=0:0\\n   StdOut={folder}/%j.out"


@pytest.fixture
def answers(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """A function that gives what scontrol shall answer, one after another; None is a controller that is away."""
    queue = tmp_path / "queue"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nread -r line < {queue}\n[ $(wc -l < {queue}) -gt 1 ] && sed -i 1d {queue}\n"
        '[ "$line" = away ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }\n'
        'printf "%b\\n" "$line"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_job, "POLL_S", 0.01)

    def give(*states: tuple[str, str] | None) -> None:
        lines = [
            "away" if state is None else ANSWER.format(state=state[0], code=state[1], folder=tmp_path)
            for state in states
        ]
        queue.write_text("\n".join(lines).replace("\n   ", "\\n   ") + "\n")

    return give


def test_a_controller_that_is_away_for_a_while_ends_nothing(answers, tmp_path: pathlib.Path) -> None:
    (tmp_path / "out").write_text("a line\n")
    answers(None, ("PENDING", "0:0"), None, None, ("RUNNING", "0:0"), ("FAILED", "3:0"))
    said = io.StringIO()
    assert slurm_job.follow("7", tmp_path / "out", said) == 3
    away = "cluster.launcher: scontrol refuses: slurm_load_jobs error: Unable to contact slurm controller"
    assert said.getvalue().splitlines() == [away, "slurm: pending", "a line", away, "slurm: failed"]


def test_one_that_stays_away_is_an_error(answers, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "SILENCE_S", 0.05)
    answers(None)
    with pytest.raises(JobError, match="Unable to contact"):
        slurm_job.follow("7", tmp_path / "out", io.StringIO())


@pytest.mark.parametrize(("state", "alive"), [("PENDING", "7"), ("REQUEUED", "7"), ("CANCELLED", "")])
def test_what_is_pending(answers, tmp_path: pathlib.Path, state: str, alive: str) -> None:
    answers((state, "0:0"))
    assert slurm_job.pending(tmp_path) == ""  # nothing was submitted from here
    (tmp_path / slurm_job.NUMBER).write_text("7\n")
    assert slurm_job.pending(tmp_path) == alive


def test_the_number_of_another_folders_job_is_none_of_ours(answers, tmp_path: pathlib.Path) -> None:
    answers(("RUNNING", "0:0"))
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / slurm_job.NUMBER).write_text("7\n")
    assert slurm_job.pending(copied) == ""
    (copied / slurm_job.NUMBER).unlink()
    os.mkfifo(copied / slurm_job.NUMBER)
    assert slurm_job.pending(copied) == ""


def test_a_job_that_a_signal_ended(answers, tmp_path: pathlib.Path) -> None:
    answers(("CANCELLED", "0:15"))
    assert slurm_job.follow("7", tmp_path / "out", io.StringIO()) == 128 + 15
