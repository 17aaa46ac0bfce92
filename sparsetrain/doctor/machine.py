"""What this machine offers to a run, in a few lines."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import shutil
import socket
import sys
from collections.abc import Mapping

from sparsetrain.config.errors import JobError
from sparsetrain.track.wandb import resolve_mode
from sparsetrain.worker import interface

PACKAGES = ("torch", "ray", "wandb", "numpy", "deepspeed", "mpi4py", "triton")
COMPILERS = ("c++", "g++", "clang++")


def examine(env: Mapping[str, str]) -> dict[str, str]:
    """Return facts by name: versions, processors, memory, disk, network, W&B mode, compiler, kernels."""
    return {
        "sparsetrain": version("sparsetrain"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: version(name) for name in PACKAGES},
        "cores": f"{cores()} usable of {os.cpu_count()}",
        "memory": _memory(),
        "free disk here": f"{shutil.disk_usage(pathlib.Path.cwd()).free / 2**30:.1f} GiB",
        "cuda": _cuda(),
        "wandb mode": resolve_mode("auto", env, pathlib.Path.home() / ".netrc"),
        "interface": _interface(),
        "compiler": _compiler(env),
        "kernels": _kernels(),
    }


def version(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory() -> str:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return "unknown"
    sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines}  # KiB to GiB
    return f"{sizes['MemAvailable']:.1f} GiB available of {sizes['MemTotal']:.1f} GiB"


def _cuda() -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(torch.cuda.get_device_name(index) for index in range(count)) or "none"


def _interface() -> str:
    found = interface.interfaces()
    try:
        outward = interface.choose("192.0.2.1", None, found)  # an address for documentation: nothing is sent
    except JobError:
        outward = None
    names = ", ".join(f"{name} {address}" for name, address in found.items())
    return f"{outward or 'loopback only'} ({socket.gethostname()}: {names or 'unknown'})"


def _kernels() -> str:
    from sparsetrain.kernels import versions  # builds them where they are not yet built

    try:
        return versions.describe()
    except (ValueError, RuntimeError) as error:
        return f"none: {error}"


def _compiler(env: Mapping[str, str]) -> str:
    wanted = (env["CXX"],) if env.get("CXX") else COMPILERS
    return next((path for path in map(shutil.which, wanted) if path), "none (reference kernels are used)")
