"""A verb on another host, by ssh: `HOST:RUN` is a run folder there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from sparsetrain.config.errors import JobError

PLACE = re.compile(r"((?:[A-Za-z0-9_.-]+@)?[A-Za-z0-9_][A-Za-z0-9_.-]*):(?!//)(.+)")
REACH_S = 15  # seconds for a host to answer
UNREACHED, UNKNOWN = 255, 127  # exit codes: of ssh itself, and of a shell that finds no such program


def split(run: str) -> tuple[str, str] | None:
    """Return the host and the folder of `HOST:RUN`, None where it is a run of this machine."""
    found = PLACE.fullmatch(run)
    return (found[1], found[2]) if found else None


def verb(host: str, program: str, arguments: Sequence[str], terminal: bool) -> int:
    """Run `sparsetrain` with some arguments on a host, on this terminal, and return its exit code. A relative folder is
    looked for where ssh begins, in the home folder. Raises JobError where there is no way there."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise JobError(f"{host}: there is no ssh on the PATH to reach it with")
    options = ["-t" if terminal else "-T", "-o", f"ConnectTimeout={REACH_S}"]
    code = subprocess.call([ssh, *options, "--", host, shlex.join([program, *arguments])])
    if code == UNREACHED:
        raise JobError(f"{host}: ssh cannot reach it")
    if code == UNKNOWN:
        raise JobError(f"{host}: its shell finds no {program}; allowed: --program with the path of sparsetrain there")
    return code
