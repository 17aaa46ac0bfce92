"""Where checkpoints lie: what a store can do, and a checkpoint in it as the source of a state.

A file is put by the rank that wrote it. When all have, rank 0 publishes the checkpoint with the digests of all files:
until then nobody takes it for one. Errors of a store are OSErrors; whoever asks decides whether training goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from sparsetrain.config.job import Job
from sparsetrain.engine import checkpoint
from sparsetrain.engine.checkpoint import About, CheckpointError, Tensors

COMPLETE = "COMPLETE"
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LATEST = 1e11  # seconds since 1970, some thousand years on
T = TypeVar("T")


class StoreError(CheckpointError, OSError):
    """A store has refused, failed, or not answered in time: what it holds may be whole."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of a checkpoint: its digest and its size in bytes (None: nobody has noted it)."""

    digest: str
    size: int | None = None


class Store(Protocol):
    """The checkpoints of one run. `name` stands in messages; `near`: to read a checkpoint costs little."""

    name: str
    near: bool

    def complete(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""
        ...

    def unfinished(self) -> list[str]:
        """Return what is there of checkpoints that are not complete, sorted."""
        ...

    def begin(self, name: str, rank: int, files: Iterable[str]) -> None:
        """Make ready for this rank's files; ones of that name that are no rest of an own attempt are set aside."""
        ...

    def put(self, name: str, file: str, write: Callable[[pathlib.Path], None]) -> Part:
        """Let `write` make a file, and return what has been put."""
        ...

    def peek(self, name: str, file: str) -> bytes | None:
        """Return a small file of a checkpoint that is not yet complete; None where it is not there."""
        ...

    def publish(self, name: str, parts: Mapping[str, Part]) -> None:
        """Make the checkpoint complete, and remove the rests of attempts before the newest complete one."""
        ...

    def drop(self, name: str) -> None:
        """Remove what has been put of a checkpoint that will not be complete."""
        ...

    def sizes(self, name: str) -> dict[str, int]:
        """Return the files that a complete checkpoint has, with their sizes."""
        ...

    def fetch(self, name: str, file: str) -> contextlib.AbstractContextManager[pathlib.Path]:
        """Give a file of a complete checkpoint as one on this machine, for as long as the context lasts."""
        ...

    def remove(self, name: str) -> None:
        """Remove a complete checkpoint; one that is removed by half is not complete."""
        ...


class Stored:
    """A complete checkpoint as the source of a state (see pieces.Source); a file's digest is compared before it is
    read."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.folder = name
        self.name = f"{store.name}/{name}"
        self.written: float | None = None  # when, in seconds since 1970; known once `parts` is
        self._parts: dict[str, Part] | None = None

    def about(self) -> About:
        """Return state.json. Raises CheckpointError when it is damaged, of another format or of another step."""
        where = f"{self.name}/state.json"
        about = self._read("state.json", lambda path: checkpoint.parse_about(checkpoint.read_text(path), where))
        if about.step != checkpoint.step_of(self.folder):
            raise CheckpointError(f"{where}: step {about.step} in the folder of another step")
        return about

    def read(self, group: str) -> Tensors:
        """Return the tensors of a group. Raises CheckpointError when its file is missing or damaged."""
        return self._read(f"{group}.safetensors", checkpoint.read_tensors)

    def job(self) -> dict[str, Any]:
        """Return the tree of the job that was trained; an empty one where it was not saved. Raises CheckpointError."""
        if "job.json" not in self.parts():
            return {}
        return self._read("job.json", lambda path: json.loads(checkpoint.read_text(path)))

    def parts(self) -> dict[str, Part]:
        """Return the files that COMPLETE names. Raises CheckpointError when it is none."""
        if self._parts is None:
            try:
                with self.store.fetch(self.folder, COMPLETE) as path:
                    told = json.loads(checkpoint.read_text(path))
                sizes = told.get("bytes", {})
                parts = {file: Part(str(told["blake2b"][file]), sizes.get(file)) for file in told["blake2b"]}
                if odd := [file for file in parts if not FILE.fullmatch(file)]:
                    raise ValueError(f"{odd[0]!r} is no name of a file")
                written = float(told["time"]) if "time" in told else None
                if written is not None and not 0 <= written < LATEST:
                    raise ValueError(f"{written} is no time")
                self._parts, self.written = parts, written
            except StoreError:
                raise
            except (
                OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError
            ) as error:  # fmt: skip
                raise CheckpointError(f"{COMPLETE}: is damaged ({type(error).__name__}: {error})") from error
        return self._parts

    def compare(self, file: str) -> None:
        """Raise CheckpointError when a file is missing or is not the one that COMPLETE names."""
        self._read(file, lambda path: None)

    def _read(self, file: str, take: Callable[[pathlib.Path], T]) -> T:
        where = f"{self.name}/{file}"
        try:
            part = self.parts().get(file)
            with self.store.fetch(self.folder, file) as path:
                checkpoint.check_file(path)
                # Ranks without a shared disk have files that rank 0 has not seen.
                if part is not None and part.size is not None and path.stat().st_size != part.size:
                    given = path.stat().st_size
                    raise CheckpointError(f"is not the file that was saved ({given} bytes, not {part.size})")
                if part is not None and checkpoint.digest(path) != part.digest:
                    raise CheckpointError("is not the file that was saved (its digest is another)")
                return take(path)
        except StoreError:
            raise
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{where}: {type(error).__name__}: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from error


def complete_text(parts: Mapping[str, Part]) -> str:
    """Return the content of COMPLETE."""
    digests = {file: part.digest for file, part in sorted(parts.items())}
    sizes = {file: part.size for file, part in sorted(parts.items())}
    return json.dumps({"blake2b": digests, "bytes": sizes, "time": time.time()}, indent=1)


def open_store(job: Job, folder: pathlib.Path) -> Store:
    """Return where the job's checkpoints lie: below its URL, or in the run folder. Nothing is made or read yet."""
    from sparsetrain.engine.local_store import LocalStore
    from sparsetrain.engine.remote_store import RemoteStore

    rules = job.checkpoint
    if rules.url is None:
        return LocalStore(folder / "checkpoints")
    return RemoteStore(f"{rules.url.rstrip('/')}/{job.name}", rules.timeout)
