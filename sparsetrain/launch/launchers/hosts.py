"""Names of hosts in launchers' options, and whether this machine knows them."""

from __future__ import annotations

import socket
from typing import Annotated

from pydantic import Field

from sparsetrain.config.errors import JobError

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=253)]


def refuse_unknown(hosts: tuple[str, ...], field: str) -> None:
    """Raise JobError, for the field `field`, where a host has no address."""
    for host in hosts:
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            raise JobError(f"{field}: no host {host!r} is known here") from None
