"""Checkpoints behind a URL that fsspec opens: objects have no rename, so a prefix without COMPLETE is no checkpoint.

Files are written to this machine's temporary folder first and come back through it. While a rank puts its files, a mark
`unfinished.rank00000` lies beside them: what has marks and no COMPLETE is the rest of a killed attempt. Whatever is
asked of the store ends after a while, also when it does not answer.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeVar

import fsspec

from sparsetrain.engine import checkpoint
from sparsetrain.engine.checkpoint import step_of
from sparsetrain.engine.store import COMPLETE, Part, StoreError, complete_text

MARK = "unfinished.rank"
OBJECTS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss")  # have no folders
# Without these an S3 server that is away is waited for for many minutes.
S3 = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}}
OPTIONS: dict[str, dict[str, Any]] = {"s3": S3, "s3a": S3}
SECRETS = ("SECRET", "TOKEN", "PASSWORD", "KEY")
T = TypeVar("T")


class RemoteStore:
    """See Store. `timeout`: seconds for each request; a large file is one."""

    near = False

    def __init__(self, url: str, timeout: float) -> None:
        self.name = url
        self.timeout = timeout
        self.scheme, _, _ = url.partition("://")
        self._opened: tuple[Any, str] | None = None

    def complete(self) -> list[str]:
        """See Store."""
        found = self._ask("listing", lambda fs, root: fs.glob(f"{root}/step_*/{COMPLETE}"))
        steps = {name: step for name in (path.split("/")[-2] for path in found) if (step := step_of(name)) is not None}
        return sorted(steps, key=lambda name: steps[name])

    def unfinished(self) -> list[str]:
        """See Store."""
        known = set(self.complete())
        found = self._ask("listing", lambda fs, root: fs.glob(f"{root}/step_*/*"))
        return sorted({path.split("/")[-2] for path in found if step_of(path.split("/")[-2]) is not None} - known)

    def begin(self, name: str, rank: int, files: Iterable[str]) -> None:
        """See Store."""
        mark, present = f"{MARK}{rank:05d}", self._present(name)
        if mark not in present:
            for file in {*files, *([COMPLETE] if rank == 0 else [])} & set(present):
                self._set_aside(name, file)
            self._write(name, mark, b"")

    def put(self, name: str, file: str, write: Callable[[pathlib.Path], None]) -> Part:
        """See Store."""
        with tempfile.TemporaryDirectory(prefix="sparsetrain-") as folder:
            path = pathlib.Path(folder) / file
            write(path)
            part = Part(checkpoint.digest(path), path.stat().st_size)
            self._ask(f"sending {file}", lambda fs, root: fs.put_file(str(path), f"{root}/{name}/{file}"))
        return part

    def peek(self, name: str, file: str) -> bytes | None:
        """See Store."""
        if file not in self._present(name):
            return None
        return self._ask(f"reading {file}", lambda fs, root: fs.cat_file(f"{root}/{name}/{file}"))

    def publish(self, name: str, parts: Mapping[str, Part]) -> None:
        """See Store."""
        self._write(name, COMPLETE, complete_text(parts).encode())
        self._remove(name, [file for file in self._present(name) if file.startswith(MARK)])
        newest = max(step_of(each) or 0 for each in [*self.complete(), name])
        for old in self.unfinished():
            if (step_of(old) or 0) < newest:
                self.drop(old)

    def drop(self, name: str) -> None:
        """See Store. Only the rest of an attempt is removed: one that has a mark."""
        present = self._present(name)
        marks = [file for file in present if file.startswith(MARK)]
        if marks and COMPLETE not in present:
            self._remove(name, [file for file in present if file not in marks])
            self._remove(name, marks)
            if self.scheme not in OBJECTS:
                self._ask(f"removing {name}", lambda fs, root: fs.rmdir(f"{root}/{name}"))

    def sizes(self, name: str) -> dict[str, int]:
        """See Store."""
        return self._present(name)

    @contextlib.contextmanager
    def fetch(self, name: str, file: str) -> Generator[pathlib.Path]:
        """See Store."""
        with tempfile.TemporaryDirectory(prefix="sparsetrain-") as folder:
            path = pathlib.Path(folder) / file
            self._ask(f"reading {file}", lambda fs, root: fs.get_file(f"{root}/{name}/{file}", str(path)))
            yield path

    def remove(self, name: str) -> None:
        """See Store."""
        self._write(name, f"{MARK}00000", b"")
        self._remove(name, [COMPLETE])
        self.drop(name)

    def _set_aside(self, name: str, file: str) -> None:
        number, aside = 1, f"{name}.aside"
        while file in self._present(aside):
            number += 1
            aside = f"{name}.aside.{number}"

        def copy(fs: Any, root: str) -> None:
            self._make_folder(fs, f"{root}/{aside}")
            fs.cp_file(f"{root}/{name}/{file}", f"{root}/{aside}/{file}")

        self._ask(f"copying {file}", copy)
        self._remove(name, [file])

    def _present(self, name: str) -> dict[str, int]:
        """Return the files below a name with their sizes; none where there is nothing."""

        def listed(fs: Any, root: str) -> dict[str, int]:
            try:
                found = fs.ls(f"{root}/{name}", detail=True)
            except FileNotFoundError:
                return {}
            return {each["name"].rsplit("/", 1)[-1]: int(each["size"]) for each in found if each["type"] == "file"}

        return self._ask("listing", listed)

    def _write(self, name: str, file: str, data: bytes) -> None:
        def write(fs: Any, root: str) -> None:
            self._make_folder(fs, f"{root}/{name}")
            fs.pipe_file(f"{root}/{name}/{file}", data)

        self._ask(f"sending {file}", write)

    def _make_folder(self, fs: Any, path: str) -> None:
        if self.scheme not in OBJECTS:
            fs.makedirs(path, exist_ok=True)

    def _remove(self, name: str, files: list[str]) -> None:
        for file in files:
            self._ask(f"removing {file}", lambda fs, root, file=file: fs.rm_file(f"{root}/{name}/{file}"))

    def _ask(self, what: str, request: Callable[[Any, str], T]) -> T:
        """Return what the request gives. Raises StoreError when it fails or takes too long."""
        outcome: list[Any] = []
        done = threading.Event()

        def work() -> None:
            try:
                outcome.append((True, request(*self._open())))
            except BaseException as error:
                outcome.append((False, error))
            done.set()

        # fsspec's own time-outs differ from store to store; a thread that never returns ends with the process.
        threading.Thread(target=work, name="sparsetrain-store", daemon=True).start()
        if not done.wait(self.timeout):
            raise StoreError(f"{self.name} has not answered for {self.timeout:g} s, {what} (checkpoint.timeout)")
        good, found = outcome[0]
        if isinstance(found, FileNotFoundError):
            raise FileNotFoundError(f"{self.name} has nothing there, {what}") from found
        if not good:
            raise StoreError(f"{self.name} failed, {what}: {type(found).__name__}: {_plain(found)}") from found
        return found

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            options = OPTIONS.get(self.scheme, {})
            fs, root = fsspec.core.url_to_fs(self.name, use_listings_cache=False, **options)
            self._opened = fs, root.rstrip("/")
        self._opened[0].invalidate_cache()
        return self._opened


def _plain(error: BaseException) -> str:
    """Return the first words of an error, without the values of variables that are secret."""
    text = " ".join(str(error).split())
    for key, value in os.environ.items():
        if len(value) >= 8 and any(word in key.upper() for word in SECRETS):
            text = text.replace(value, "***")
    return text[:300]
