"""Checkpoints in a folder: written beside, fsynced and marked, then renamed.

`step_00000500.unfinished` is being written, or what a killed attempt has left; `.removed` is going; `.aside` was found
under the name of a checkpoint that has been written anew, and is never touched again.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping

from sparsetrain.engine import checkpoint
from sparsetrain.engine.checkpoint import step_of
from sparsetrain.engine.store import COMPLETE, Part, complete_text

UNFINISHED, REMOVED = ".unfinished", ".removed"


class LocalStore:
    """See Store. All ranks see the same folder, or rank 0's checkpoints lack the parts of those that do not."""

    near = True

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.name = str(root)

    def complete(self) -> list[str]:
        """See Store."""
        return [folder.name for folder in checkpoint.complete(self.root)]

    def unfinished(self) -> list[str]:
        """See Store."""
        known = set(self.complete())
        found = [path.name for path in self.root.glob("step_*") if path.is_dir() and path.name not in known]
        return sorted(name for name in found if step_of(name.removesuffix(UNFINISHED)) is not None)

    def begin(self, name: str, rank: int, files: Iterable[str]) -> None:
        """See Store."""
        self._beside(name).mkdir(parents=True, exist_ok=True)

    def put(self, name: str, file: str, write: Callable[[pathlib.Path], None]) -> Part:
        """See Store."""
        path = self._beside(name) / file
        write(path)
        checkpoint.sync(path)
        return Part(checkpoint.digest(path), path.stat().st_size)

    def peek(self, name: str, file: str) -> bytes | None:
        """See Store."""
        path = self._beside(name) / file
        return path.read_bytes() if path.is_file() else None

    def publish(self, name: str, parts: Mapping[str, Part]) -> None:
        """See Store."""
        beside, final = self._beside(name), self.root / name
        checkpoint.write_text(beside / COMPLETE, complete_text(parts))
        checkpoint.sync(beside)
        if final.exists():
            final.rename(_free(final.with_name(f"{name}.aside")))
        beside.rename(final)
        checkpoint.sync(self.root)
        self._sweep()

    def drop(self, name: str) -> None:
        """See Store."""
        shutil.rmtree(self._beside(name), ignore_errors=True)

    def sizes(self, name: str) -> dict[str, int]:
        """See Store."""
        return {path.name: path.stat().st_size for path in (self.root / name).iterdir()}

    @contextlib.contextmanager
    def fetch(self, name: str, file: str) -> Generator[pathlib.Path]:
        """See Store."""
        yield self.root / name / file

    def remove(self, name: str) -> None:
        """See Store."""
        going = self.root / f"{name}{REMOVED}"
        shutil.rmtree(going, ignore_errors=True)
        (self.root / name).rename(going)
        shutil.rmtree(going)

    def _sweep(self) -> None:
        newest = max((step_of(name) or 0 for name in self.complete()), default=-1)
        for path in self.root.glob("step_*.*"):
            step = step_of(path.stem)
            if step is not None and (path.suffix == REMOVED or (path.suffix == UNFINISHED and step < newest)):
                shutil.rmtree(path, ignore_errors=True)

    def _beside(self, name: str) -> pathlib.Path:
        return self.root / f"{name}{UNFINISHED}"


def _free(path: pathlib.Path) -> pathlib.Path:
    """Return the path, or the first of path.2, path.3, ... that is free."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
