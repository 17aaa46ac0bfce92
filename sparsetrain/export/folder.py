"""Where exports lie: written beside, forced to the disk, then renamed; an earlier export goes only then."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Generator

from sparsetrain.config.errors import JobError
from sparsetrain.engine.checkpoint import sync

MARK = "export.json"


def check_target(target: pathlib.Path) -> None:
    """Raise JobError where the folder holds anything that no export has put there."""
    try:
        if not target.exists():
            return
        found = files(target) if target.is_dir() else ["it"]
        strange = sorted(set(found) - _listed(target / MARK)) if found else []
    except OSError as error:
        raise JobError(f"--out: cannot read {target}: {error.strerror or error}") from error
    if strange:
        raise JobError(f"--out: {target} is there and is no export ({strange[0]} is of none); name another folder")


def files(folder: pathlib.Path) -> list[str]:
    """Return all that lies in a folder but empty folders and what Python compiles, by relative path."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and (path.is_symlink() or not path.is_dir())
    )


def _listed(mark: pathlib.Path) -> set[str]:
    try:
        told = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {}
        return {str(name) for name in told["files"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return set()


@contextlib.contextmanager
def made(target: pathlib.Path) -> Generator[pathlib.Path]:
    """Give an empty folder that takes the target's place at the end; when anything is raised nothing is left of it.
    Raises JobError where it cannot be written."""
    target = target.resolve()
    check_target(target)
    if target == (here := pathlib.Path.cwd()) or target in here.parents:
        raise JobError(f"--out: {target} is the folder that you are in, or holds it; name another")
    beside: pathlib.Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        fresh, old = beside / "new", beside / "old"
        fresh.mkdir()
        with _tidying():
            yield fresh
        _finish(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        sync(target.parent)
    except OSError as error:
        raise JobError(f"--out: cannot write {target}: {error.strerror or error}") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def _tidying() -> Generator[None]:
    """Let SIGTERM end what is inside as Ctrl-C does, so that nothing is left lying."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(folder: pathlib.Path) -> None:
    """Let everybody read the files whom the user's umask lets, and force all to the disk."""
    mode = (folder / MARK).stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # safetensors are made for their owner alone
        sync(path)
    sync(folder)
