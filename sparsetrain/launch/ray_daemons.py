"""Ray's daemons on this node as children of this process: started behind a token, ended with all their descendants."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping

from sparsetrain.config.errors import JobError
from sparsetrain.launch.private_folder import private_folder
from sparsetrain.launch.ray_cluster import CONNECT_TIMEOUT, OBJECT_STORE, children, connected, end
from sparsetrain.launch.signals import undisturbed

POLL = 0.2
QUICK = 2.0  # seconds that daemons get to end by themselves: Slurm may kill this process some seconds later
TELL = 10.0  # seconds between two lines that say for whom the head waits
SAID = 15  # lines of Ray's own that an error shows
# Slurm sends its notice to all processes of a task: it would end Ray's, which are to go on until all is saved.
DEAF = "trap '' USR1; exec \"$@\""
# Draining a node would only keep the end of a job waiting.
VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


class DaemonsLost(RuntimeError):
    """Ray's daemons on this node did not come up, or ended; the text has what they said."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Daemons:
    """What `ray start` shall start here: the node `name` at `address`, with so many processors and GPUs, in the cluster
    whose head is at `head`; `leads`: it is the head itself."""

    name: str
    address: str
    head: str
    leads: bool
    cpus: int
    gpus: int

    def command(self) -> list[str]:
        """Return the command; apart from the head's, every port is one that is free, so that jobs can share a node."""
        port = self.head.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--include-dashboard=false"]
        if importlib.util.find_spec("grpc"):  # then Ray serves its client as well, at one port for all users
            head.append(f"--ray-client-server-port={int(port) + 1}")
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(head if self.leads else [f"--address={self.head}"]),
            f"--node-ip-address={self.address}",
            f"--node-name={self.name}",
            f"--num-cpus={self.cpus}",
            f"--num-gpus={self.gpus}",
            f"--object-store-memory={OBJECT_STORE}",
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        ]


def protected(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that Ray needs. Raises JobError where there is no token: others could use the cluster."""
    if not (env.get("RAY_AUTH_TOKEN") or env.get("RAY_AUTH_TOKEN_PATH")):
        raise JobError(
            "RAY_AUTH_TOKEN: not set in the environment; all nodes need the same one, made by the batch script"
            " (launchers/slurm_ray.sbatch)"
        )
    return VARIABLES


class Running:
    """Daemons that run; `check` raises DaemonsLost when they do not any more."""

    def __init__(self, process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
        self.process = process
        self.log = log

    def check(self) -> None:
        """Raise DaemonsLost, with Ray's last lines, when the daemons have ended."""
        code = self.process.poll()
        if code is not None:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise DaemonsLost("\n".join([f"ray start ended with exit code {code}", *lines[-SAID:]]))


@contextlib.contextmanager
def running(daemons: Daemons) -> Generator[Running]:
    """Run Ray's daemons; they, all that they have started and their files are gone when this returns. Changes
    os.environ: a driver in this process looks for their files where they are."""
    before = {process.pid for process in children()}
    if daemons.address.startswith("127."):
        # Ray turns a given 127.0.0.1 into the outer address; this switch makes it stay on the loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with private_folder() as folder:
        os.environ["RAY_TMPDIR"] = str(folder)
        log = folder / "ray.txt"
        try:
            with log.open("wb") as file:
                process = subprocess.Popen(
                    ["sh", "-c", DEAF, "sh", *daemons.command()],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            yield Running(process, log)
        finally:
            with undisturbed():
                started = [child for child in children() if child.pid not in before]
                for child in started:
                    with contextlib.suppress(Exception):  # it has ended by itself
                        child.terminate()
                end(started, QUICK)


def answers(address: str) -> bool:
    """Return whether somebody listens at host:port. Raises TimeoutError where nobody says anything."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()
    except TimeoutError:
        raise
    except OSError:
        return False
    return True


def await_head(address: str, limit: float, check: Callable[[], None]) -> None:
    """Return when the head listens; `check` is called meanwhile and may raise. Raises JobError after `limit` s."""
    deadline = time.monotonic() + limit
    while True:
        check()
        with contextlib.suppress(TimeoutError):
            if answers(address):
                return
        if time.monotonic() > deadline:
            raise JobError(
                f"cluster.start_timeout: Ray's head does not answer at {address} after {limit:g} s"
                " (is the port open between the nodes?)"
            )
        time.sleep(POLL)


def await_nodes(
    address: str, names: tuple[str, ...], limit: float, check: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Return when all nodes `names` are in the cluster at `address`; `check` is called meanwhile and may raise.

    Raises JobError with those that are missing after `limit` seconds.
    """
    import ray

    began = told = time.monotonic()
    with connected(address):
        while True:
            check()
            alive = {node["NodeName"] for node in ray.nodes() if node["Alive"]}
            missing = [name for name in names if name not in alive]
            if not missing:
                say(f"ray: {len(names)} node(s) after {time.monotonic() - began:.1f} s: {', '.join(names)}")
                return
            waited = time.monotonic() - began
            short = f"{len(names) - len(missing)} of {len(names)} nodes of Ray; missing: {', '.join(missing)}"
            if waited > limit:
                raise JobError(f"cluster.start_timeout: after {limit:g} s there are {short}")
            if time.monotonic() - told > TELL:
                told = time.monotonic()
                say(f"ray: {short} (waiting for {waited:.0f} s)")
            time.sleep(POLL)
