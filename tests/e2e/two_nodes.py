"""Starts a Ray cluster of two nodes on this machine, runs the command line on it, and takes it down.

Usage: python two_nodes.py JOB [a.b=c ...]; the exit code is that of the command.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import subprocess
import sys
import tempfile


def main() -> int:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    # The cluster writes its address there and expects the folder.
    pathlib.Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="st2-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "temp_dir": folder})
        with contextlib.ExitStack() as stack:
            stack.callback(cluster.shutdown)
            cluster.add_node(num_cpus=2)
            command = [sys.executable, "-m", "sparsetrain", "run", *sys.argv[1:]]
            return subprocess.run([*command, f"cluster.address={cluster.address}"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
