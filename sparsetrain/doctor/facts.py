"""What one rank says of itself in an examination of the cluster. A token is told by a keyed digest only."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import shutil
import socket
import sys
from collections.abc import Mapping
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.doctor.machine import cores, version
from sparsetrain.worker import interface
from sparsetrain.worker.environment import Place

VERSIONS = ("sparsetrain", "torch", "ray", "numpy")


def facts(job: Job, place: Place, env: Mapping[str, str], salt: bytes) -> dict[str, Any]:
    """Return what is compared between ranks, and `troubles`: what this rank finds wrong by itself."""
    name, address, troubles = network(job, place)
    return {
        "node": place.node,
        "host": socket.gethostname(),
        "local_rank": place.local_rank,
        "interface": name,
        "address": address,
        "interfaces": interface.interfaces(),
        "python": platform.python_version(),
        **{package: version(package) for package in VERSIONS},
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "mpi": _mpi(env),
        "token": _token(env, salt),
        "troubles": troubles,
    }


def network(job: Job, place: Place) -> tuple[str | None, str, list[str]]:
    """Return the interface and the address of this rank as a run would choose them, and what is wrong with them."""
    found = interface.interfaces()
    wanted, troubles = job.cluster.interface, []
    try:
        name = interface.choose(place.master_addr, wanted, found)
    except JobError as error:
        troubles.append(str(error))
        name = interface.choose(place.master_addr, None, found)
    return name, found.get(name or "") or interface.local_address(place.master_addr), troubles


def _memory_gib() -> float:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (OSError, ValueError):
        return 0.0


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _mpi(env: Mapping[str, str]) -> str:
    binding = version("mpi4py")
    if binding == "not installed":
        return "none"
    places = [os.path.dirname(sys.executable), *filter(None, [env.get("PATH")])]
    return f"mpi4py {binding}, {shutil.which('mpiexec', path=os.pathsep.join(places)) or 'no mpiexec'}"


def _token(env: Mapping[str, str], salt: bytes) -> str:
    """Return "none", or a digest that says nothing of the token but whether two ranks have the same."""
    token = env.get("RAY_AUTH_TOKEN", "")
    if not token and (path := env.get("RAY_AUTH_TOKEN_PATH")):
        try:
            token = pathlib.Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            return f"RAY_AUTH_TOKEN_PATH: {error.strerror or error}"
    return hashlib.blake2b(token.encode(), key=salt, digest_size=4).hexdigest() if token else "none"
