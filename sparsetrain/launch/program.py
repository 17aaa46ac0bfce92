"""What a program of the cluster's answers: its output, or why it does not, in one line."""

from __future__ import annotations

import pathlib
import subprocess

from sparsetrain.config.errors import JobError

ANSWER_S = 60.0
LONGEST = 300  # characters of what it says on standard error; the reason comes last


def answer(*words: str) -> str:
    """Return what a command prints. Raises JobError where it cannot be started, is silent, or ends badly."""
    name = pathlib.Path(words[0]).name
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"cluster.launcher: {name}: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-LONGEST:] or "no reason given"
        raise JobError(f"cluster.launcher: {name} refuses: {said}")
    return done.stdout
