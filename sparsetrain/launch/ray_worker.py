"""The Ray actor that is one rank. Its `run` blocks for the whole run; `poll` answers beside it."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import socket
import sys
import time
import traceback
from typing import Any

from sparsetrain.worker.environment import Place

COPY_LIMIT = 64 << 20  # bytes; larger files stay on the worker's node


class RayWorker:
    """A process that Ray started for one rank; which rank it is becomes known when all of them are up."""

    def __init__(self, variables: dict[str, str], paths: list[str], directory: str) -> None:
        os.environ.update(variables)
        with contextlib.suppress(OSError):  # a job's relative paths mean the same here, where there is such a folder
            os.chdir(directory)
        sys.path.extend(path for path in paths if path not in sys.path)
        self.lines: collections.deque[str] = collections.deque(maxlen=10_000)
        self.rows: collections.deque[dict[str, float]] = collections.deque(maxlen=10_000)
        self.listener: socket.socket | None = None

    def where(self, marker: str) -> dict[str, Any]:
        """Return node id, address, host name and pid of this process, and whether it sees the file `marker`."""
        import ray

        context = ray.get_runtime_context()
        return {
            "node": context.get_node_id(),
            "address": ray.util.get_node_ip_address(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "shared": pathlib.Path(marker).is_file(),
        }

    def hold_port(self, address: str) -> int:
        """Return a TCP port of this node's `address` that stays this process's own until the ranks meet there."""
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.listener.bind((address, 0))
        self.listener.listen()
        return int(self.listener.getsockname()[1])

    def run(self, tree: dict[str, Any], place: Place, folder: str) -> dict[str, Any]:
        """Train and return {"result": ...} or {"failure": ...}; an exception would lose its time and its type."""
        from sparsetrain.config.load import JobError, parse

        try:
            os.environ.update(place.variables())
            path = pathlib.Path(folder)
            self._redirect(path, place.rank)
            from sparsetrain.worker.main import run_worker

            return {"result": run_worker(parse(tree), place, path, self._log, self.rows.append, self.listener)}
        except JobError as error:
            return {"failure": {"kind": "job", "message": str(error), "at": time.time()}}
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            print(text, file=sys.stderr, flush=True)
            name = type(error).__name__
            message = str(error)
            return {
                "failure": {"kind": "error", "type": name, "message": message, "traceback": text, "at": time.time()}
            }

    def alive(self) -> None:
        """Return at once: the driver sees that this process runs."""

    def poll(self) -> tuple[list[str], list[dict[str, float]]]:
        """Return the log lines and the metric rows that are new since the last call."""
        lines = [self.lines.popleft() for _ in range(len(self.lines))]
        return lines, [self.rows.popleft() for _ in range(len(self.rows))]

    def files(self, folder: str) -> dict[str, bytes]:
        """Return the run folder's files by relative path, without checkpoints and files over 64 MiB."""
        root = pathlib.Path(folder)
        found = [path for path in root.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
        return {str(path.relative_to(root)): path.read_bytes() for path in found if path.stat().st_size <= COPY_LIMIT}

    def _log(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def _redirect(self, folder: pathlib.Path, rank: int) -> None:
        """Let everything this process prints, C++ libraries included, end up in the run folder's logs."""
        if rank and not folder.is_dir():
            return  # not shared: only rank 0 keeps a folder
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"rank{rank:05d}.log").open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
