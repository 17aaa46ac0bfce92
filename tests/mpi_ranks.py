"""Real MPI ranks for tests: mpiexec on this host, with a time limit. As a script it is one of the ranks."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch

from sparsetrain.collective.mpi import mpi_world
from sparsetrain.collective.world import World

MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join((str(pathlib.Path(sys.executable).parent), os.environ["PATH"])))
# Data and control stay on the loopback: MPICH would look for the host's fastest network.
LOOPBACK = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}


def missing() -> str:
    """Return what keeps MPI ranks from running here, nothing when they can."""
    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    return "" if MPIEXEC else "there is no mpiexec"


def mpi_ranks(size: int, body: Callable[[World], Any], seconds: float = 60) -> list[Any]:
    """Return body(world) of `size` MPI processes, in rank order; `body` must be importable."""
    assert MPIEXEC is not None
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "body").write_bytes(pickle.dumps(body))
        rank = [sys.executable, __file__, folder]
        process = subprocess.Popen(
            [MPIEXEC, "-launcher", "fork", "-iface", "lo", "-n", str(size), *rank],
            env={**os.environ, **LOOPBACK, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        said = _finish(process, seconds)
        failures = [path.read_text() for path in sorted(pathlib.Path(folder).glob("*.failed"))]
        if process.returncode or failures:
            raise AssertionError(f"mpiexec ended with {process.returncode}\n" + "\n".join([*failures, said]))
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(size)]


def _finish(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Return what the process has said; end it, and all that it started, when it takes longer."""
    try:
        return process.communicate(timeout=seconds)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # mpiexec ends its ranks, wherever they are
        try:
            said = process.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()[0]
        raise AssertionError(f"mpiexec took more than {seconds} s\n{said.decode(errors='replace')}") from None


def _rank_main(folder: str) -> None:
    from mpi4py import MPI

    torch.set_num_threads(1)
    world = mpi_world(timeout=30)
    try:
        body = pickle.loads((pathlib.Path(folder) / "body").read_bytes())
        result = body(world)
        world.transport.barrier()
        torch.save(result, f"{folder}/{world.rank}.pt")
    except BaseException:
        pathlib.Path(f"{folder}/{world.rank}.failed").write_text(f"rank {world.rank} failed:\n{traceback.format_exc()}")
        MPI.COMM_WORLD.Abort(1)  # the others would wait for this rank for ever


if __name__ == "__main__":
    _rank_main(sys.argv[1])
