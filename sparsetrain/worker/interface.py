"""The network interface that gloo and nccl shall use.

Gloo binds to whatever the host name resolves to, often 127.0.0.1, and then cannot be reached: on a real network it has
to be told. The right interface is the one over which this host reaches rank 0.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from sparsetrain.config.errors import JobError
from sparsetrain.registry import nearest

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def interfaces() -> dict[str, str]:
    """Return the IPv4 address of each network interface that has one; empty where the system does not say."""
    try:
        import fcntl
    except ImportError:
        return {}
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def local_address(master_addr: str) -> str:
    """Return the address from which this host reaches `master_addr`; nothing is sent. Raises JobError."""
    try:
        target = socket.getaddrinfo(master_addr, 9, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise JobError(f"MASTER_ADDR: cannot reach {master_addr!r}: {error}") from error


def choose(master_addr: str, wanted: str | None, found: Mapping[str, str]) -> str | None:
    """Return the interface to use: `wanted` if it exists, else the one that routes to `master_addr`.

    None when the system does not tell. Raises JobError with the names there are when `wanted` is not among them, and
    when it is the loopback while rank 0 is elsewhere.
    """
    if wanted is not None:
        names = sorted({*found, *(name for _, name in socket.if_nameindex())})
        if wanted not in names:
            near = nearest(wanted, names)
            raise JobError(
                f"cluster.interface: no network interface {wanted!r} on {socket.gethostname()};"
                f" available: {', '.join(names)}{near}"
            )
        own = found.get(wanted, "")
        if own.startswith("127.") and not local_address(master_addr).startswith("127."):
            raise JobError(
                f"cluster.interface: {wanted!r} on {socket.gethostname()} has the address {own}, where ranks on other"
                f" hosts do not reach it; rank 0 is at {master_addr}"
            )
        return wanted
    address = local_address(master_addr)
    exact = [name for name, own in found.items() if own == address]
    if exact:
        return exact[0]
    # 127.0.1.1 and the like are on the loopback without being its first address.
    loopback = [name for name, own in found.items() if own.startswith("127.")]
    return loopback[0] if address.startswith("127.") and loopback else None


def variables(name: str | None) -> dict[str, str]:
    """Return the environment that makes gloo and nccl use interface `name`."""
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}
