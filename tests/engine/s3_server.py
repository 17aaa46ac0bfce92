"""A real S3 server on loopback, which forgets everything when it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator

MISSING = [name for name in ("moto", "s3fs", "flask") if importlib.util.find_spec(name) is None]
BUCKET = "bucket"


@contextlib.contextmanager
def s3_server(log: str = os.devnull) -> Generator[tuple[dict[str, str], subprocess.Popen[bytes]]]:
    """Give the variables with which a client finds the server and a bucket in it, and the server's process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with open(log, "wb") as out:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield (
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "a-test-key",
                "AWS_SECRET_ACCESS_KEY": "a-test-secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
            process,
        )
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
