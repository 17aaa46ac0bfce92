"""A command that runs as long as the training that it has started: signals go on to it, and nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from sparsetrain.config.errors import JobError
from sparsetrain.launch.plan import LaunchPlan
from sparsetrain.launch.run import STOPPED
from sparsetrain.launch.signals import SIGNALS

PASSED = (*SIGNALS, signal.SIGUSR1, signal.SIGQUIT)
ENOUGH_S = 35.0  # seconds for what a command leaves behind to end by itself: launchers give their ranks 30
LOOK_S = 0.1


def attached(plan: LaunchPlan, as_json: bool) -> int:
    """Run the commands of the plan here, one after the other, and return the exit code of the last, or of the first one
    that fails, 130 where that is because it was told to; signals that come here go on to the one that runs, but for
    those that whoever started this process has it ignore, as nohup does. Nothing but its own command ends this
    process."""
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    heard: set[int] = set()

    def pass_on(number: int, frame: object) -> None:
        heard.add(number)
        if started and started[-1].poll() is None:
            started[-1].send_signal(number)
        else:
            early.append(number)

    minded = [number for number in PASSED if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in minded}
    code, words = 0, plan.command
    try:
        for words in (*plan.first, plan.command):
            # torchrun would say at length that it sets this; workers take as many threads as the job says.
            env = {"OMP_NUM_THREADS": "1", **os.environ}
            stdout = sys.stderr if as_json else None
            # A session of its own: Ctrl-C at the terminal reaches it from here, once; mpiexec takes two for force.
            started.append(subprocess.Popen(words, env=env, stdout=stdout, start_new_session=True))
            while early:
                started[-1].send_signal(early.pop(0))
            code = started[-1].wait()
            if code < 0:
                end_group(started[-1].pid)
            if code:
                break
    except OSError as error:
        raise JobError(f"cluster.launcher: {words[0]}: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Launchers have codes of their own for having been told to end.
    stopped = heard & set(SIGNALS) or code in (-signal.SIGINT, -signal.SIGTERM)
    return STOPPED if code and stopped else code if code >= 0 else 128 - code


def end_group(group: int, patience: float = ENOUGH_S) -> None:
    """End what is left of a process group whose first process has died of a signal: the `deepspeed` command does so
    without a word to those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-group, os.WNOHANG)  # orphans become ours where this is the first process of a container
            os.killpg(group, 0)
            time.sleep(LOOK_S)
        os.killpg(group, signal.SIGKILL)
