"""A Ray cluster to run on: an own one on this machine, or one that exists; and the place in it that a job needs."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import pathlib
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Cluster
from sparsetrain.launch.private_folder import private_folder
from sparsetrain.launch.signals import kept, undisturbed

STOP_TIMEOUT = 5.0  # seconds that processes of an own cluster get to end by themselves
CONNECT_TIMEOUT = 5.0  # seconds until an address counts as silent
OBJECT_STORE = 128 << 20  # bytes; only small messages pass through it


@contextlib.contextmanager
def ray_cluster(cluster: Cluster, spares: int = 0) -> Generator[None]:
    """Be connected to a cluster; an own one has ended with all its processes and files when this returns.

    Raises JobError when the job's address does not answer.
    """
    if cluster.address:
        with connected(cluster.address):
            yield
    else:
        with local_cluster(cluster, spares):
            yield


@contextlib.contextmanager
def local_cluster(cluster: Cluster, spares: int) -> Generator[None]:
    """Run Ray on the loopback of this machine, behind a token, with as many logical CPUs as the job asks for."""
    secure(os.environ)
    import ray

    before = {process.pid for process in children()}
    with private_folder() as folder:
        try:
            quiet()
            with kept():  # init takes SIGTERM for itself
                cpus = math.ceil((cluster.workers.max + spares) * cluster.cpus_per_worker)
                ray.init(
                    address="local",  # also where RAY_ADDRESS names another cluster
                    num_cpus=max(cpus, os.cpu_count() or 1),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace=f"sparsetrain-{secrets.token_hex(4)}",
                    object_store_memory=OBJECT_STORE,
                    _temp_dir=str(folder / "r"),
                )
            yield
        finally:
            with undisturbed():
                started = [process for process in children() if process.pid not in before]
                if not bounded(ray.shutdown):
                    atexit.unregister(ray.shutdown)  # it would wait once more when the interpreter ends
                end(started)


def bounded(action: Callable[[], object], limit: float = STOP_TIMEOUT) -> bool:
    """Return whether `action` ended in `limit` seconds; Ray's calls wait for a minute where its daemons are gone.

    What it raises is of no use any more: there is nothing left to take down.
    """

    def quietly() -> None:
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(limit)
    return not thread.is_alive()


@contextlib.contextmanager
def connected(address: str) -> Generator[None]:
    """Be connected to the cluster at `address`, with the token in RAY_AUTH_TOKEN if it wants one."""
    refuse_silent(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    refuse_strange(os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH"))
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    try:
        namespace = f"sparsetrain-{secrets.token_hex(4)}"
        quiet()
        with kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace=namespace)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = str(error).strip().split("\n")[0]
        raise JobError(f"cluster.address: no Ray cluster answers at {address!r}: {first}") from error
    try:
        yield
    finally:
        with undisturbed():
            if not bounded(ray.shutdown):
                atexit.unregister(ray.shutdown)  # it would wait once more when the interpreter ends


def quiet() -> None:
    """Keep Ray from printing a page about a lost worker: the driver says it in one line."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *arguments, **options: None


def refuse_silent(address: str) -> None:
    """Raise JobError at once when nothing listens at host:port; Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise JobError(f"cluster.address: no Ray cluster answers at {address!r}: {error}") from error


def secure(environment: Any) -> None:
    """Set what an own cluster shall have before Ray is imported: loopback only, a fresh token, no usage report."""
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environment.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray turns a given 127.0.0.1 into the outer address; this switch makes it stay on the loopback.
    environment.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    environment["RAY_AUTH_MODE"] = environment.get("RAY_AUTH_MODE") or "token"
    token, path = environment.get("RAY_AUTH_TOKEN"), environment.get("RAY_AUTH_TOKEN_PATH")
    # An empty one would make Ray leave one of its own in the home folder.
    if environment["RAY_AUTH_MODE"] == "token" and not path and not token:
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    refuse_strange(token, path)


def refuse_strange(token: str | None, path: str | None) -> None:
    """Raise JobError for a token that Ray could not send, which would end this process, or a file that holds none."""
    name = "RAY_AUTH_TOKEN"
    if not token and path:
        name = "RAY_AUTH_TOKEN_PATH"
        try:
            token = pathlib.Path(path).read_text(encoding="utf-8").strip() or "\0"
        except (OSError, ValueError) as error:
            raise JobError(f"{name}: {path} cannot be read: {error}") from None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise JobError(f"{name}: holds no token; allowed: printable characters of ASCII without blanks")


@contextlib.contextmanager
def placement(cluster: Cluster, workers: int, check: Callable[[], None] | None) -> Generator[Any]:
    """Hold a placement group with a bundle for each of `workers`; `check` is called while waiting and may raise, and
    without it nobody waits: the group is there when the cluster has room.

    Raises JobError, saying what was asked and what there is, when the cluster cannot give it in time.
    """
    from ray.util import placement_group, remove_placement_group

    bundle = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        bundle["GPU"] = cluster.gpus_per_worker
    if check is not None:
        refuse_impossible(cluster, workers)
    group = placement_group([bundle] * workers, strategy=cluster.strategy)
    try:
        deadline = time.monotonic() + cluster.start_timeout
        while check is not None and not group.wait(timeout_seconds=1):
            check()
            if time.monotonic() > deadline:
                short = shortage(cluster, workers)
                raise JobError(f"{short}; waited {cluster.start_timeout:g} s (cluster.start_timeout)")
        yield group
    finally:
        with undisturbed():
            bounded(lambda: remove_placement_group(group))


def refuse_impossible(cluster: Cluster, workers: int) -> None:
    """Raise JobError at once where waiting cannot help: an own cluster does not grow."""
    import ray

    wanted = workers * cluster.gpus_per_worker
    if not cluster.address and ray.cluster_resources().get("GPU", 0.0) < wanted:
        raise JobError(shortage(cluster, workers))


def shortage(cluster: Cluster, workers: int) -> str:
    """Return what the job asks for and what the cluster has."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    total = ray.cluster_resources()
    has = f"{total.get('CPU', 0):g} CPU, {total.get('GPU', 0):g} GPU on {len(nodes)} node(s)"
    asked = f"{workers} x ({cluster.cpus_per_worker:g} CPU, {cluster.gpus_per_worker:g} GPU)"
    return f"cluster: asked for {asked}, {cluster.strategy}; the cluster has {has}"


def children() -> list[Any]:
    """Return this process's descendants (psutil.Process)."""
    import ray  # noqa: F401, I001  (it ships psutil and puts it on the path)
    import psutil  # pyrefly: ignore[missing-import]

    return list(psutil.Process().children(recursive=True))


def end(processes: list[Any], patience: float = STOP_TIMEOUT) -> None:
    """Wait for these processes to end; kill those that do not in `patience` seconds."""
    import psutil  # pyrefly: ignore[missing-import]

    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT)
