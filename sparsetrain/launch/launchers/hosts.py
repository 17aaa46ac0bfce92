"""Names of hosts in launchers' options, and whether this machine knows and reaches them."""

from __future__ import annotations

import socket
import subprocess
from typing import Annotated

from pydantic import Field

from sparsetrain.config.errors import JobError
from sparsetrain.launch.launchers.request import Request

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=253)]
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")  # never asks for a password
ANSWER_S = 30.0


def refuse_unknown(hosts: tuple[str, ...], field: str, request: Request) -> None:
    """Raise JobError, for the field `field`, where a host has no address; a dry run only says so."""
    for host in hosts:
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            request.doubt(f"{field}: no host {host!r} is known here")


def refuse_closed(host: str, field: str) -> None:
    """Raise JobError, for the field `field`, where ssh does not get into a host without a password."""
    try:
        done = subprocess.run([*SSH, host, "true"], capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"{field}: {host} is not reached by ssh: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[-200:] or f"exit code {done.returncode}"
        raise JobError(f"{field}: {host} is not reached by ssh without a password: {said}")
