"""The Ray actor in which a worker lives. Its `run` blocks while one group of ranks trains; others answer beside it."""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from typing import Any

from sparsetrain.worker.environment import Place

COPY_LIMIT = 64 << 20  # bytes; larger files stay on the worker's node


def signal_worker(pid: int, number: int) -> None:
    """Send a signal to the process `pid` of this node, if it is one of ours."""
    with contextlib.suppress(OSError):
        if b"RayWorker" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, number)


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
        self.session: Any = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._leave)

    def where(self, marker: str, tree: dict[str, Any], folder: str) -> dict[str, Any]:
        """Return node id, address, host name and pid of this process, and whether it sees the file `marker`, when it is
        ready to train."""
        import ray

        self._prepare(tree, folder)

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
        """Train as one rank and return {"result": ...}, {"paused": ...}, {"lost": ...} when other ranks are lost, or
        {"failure": ...}; an exception would lose its time and its type. After the second and third the state stays."""
        from sparsetrain.config.load import JobError

        try:
            os.environ.update(place.variables())
            self._redirect(pathlib.Path(folder), place.rank)
            session = self.session or self._prepare(tree, folder)
            return session.attend(place, self.listener)
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

    def cut(self) -> None:
        """End a `run` that waits for ranks which are gone."""
        if self.session is not None:
            self.session.cut()

    def ask(self) -> None:
        """Let all ranks return from `run` after the next exchange, so that the group can change."""
        if self.session is not None:
            self.session.ask()

    def keep(self) -> None:
        """Save when all ranks pause next: nobody goes on from what is in memory."""
        if self.session is not None:
            self.session.saves = True

    def forget(self) -> None:
        """Drop the state: the next `run` begins from a checkpoint."""
        if self.session is not None:
            self.session.forget()

    def alive(self) -> Any:
        """Return at once the session's Position, None without a session: the driver sees that this process runs."""
        return self.session.position() if self.session is not None else None

    def stacks(self) -> str:
        """Return the stacks of all threads."""
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read()

    def _prepare(self, tree: dict[str, Any], folder: str) -> Any:
        """Load what training needs: who joins a run under way shall not keep the others waiting."""
        from sparsetrain.config.load import parse
        from sparsetrain.worker.session import Session

        self.session = Session(parse(tree), pathlib.Path(folder), self._log, self.rows.append)
        return self.session

    def _leave(self, number: int, frame: Any) -> None:
        """Take a SIGTERM as the announcement that this worker's machine is about to go."""
        if self.session is None:
            sys.exit(0)
        self.session.ask(leave=True)

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
