"""A real head of a Ray cluster with its dashboard, on the loopback, behind a token that is made up for it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from commands import Desk

PARTS = ("aiohttp_cors", "colorful", "grpc", "opencensus", "prometheus_client", "smart_open", "virtualenv")


def missing() -> str:
    """Return what keeps a dashboard from running here, nothing when one can."""
    import importlib.util

    lacking = [name for name in PARTS if importlib.util.find_spec(name) is None]
    return f"ray[default] is not installed (no {lacking[0]})" if lacking else ""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def ray_head(desk: Desk, patience: float = 120.0) -> Iterator[tuple[str, dict[str, str]]]:
    """Give (the dashboard's address, an environment with the token); all processes of the head have ended after it."""
    env = {**desk.env(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    (desk.folder / "home").mkdir()
    cache = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")  # kernels are compiled already
    env |= {"HOME": str(desk.folder / "home"), "XDG_CACHE_HOME": cache}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    site = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], *site])
    env["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), env["PATH"]])
    port = free_port()
    options = [f"--dashboard-port={port}", f"--port={free_port()}", f"--temp-dir={desk.temporary}/r"]
    options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=134217728", *options]
    with (desk.temporary / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + patience
        while not _answers(f"{address}/api/jobs/", env["RAY_AUTH_TOKEN"]):
            assert head.poll() is None and time.monotonic() < deadline, (desk.temporary / "head.log").read_text()
            time.sleep(0.5)
        yield address, env
    finally:
        head.send_signal(signal.SIGTERM)  # `ray start --block` ends what it has started
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(20)
        for pid in desk.left(10):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()


def _answers(url: str, token: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
