"""Where exports lie: written beside, forced to the disk, then renamed; an earlier export goes only then."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Generator

from sparsetrain.config.errors import JobError
from sparsetrain.engine.checkpoint import sync

MARK = "export.json"


def check_target(target: pathlib.Path) -> None:
    """Raise JobError where the folder holds something that is no export."""
    try:
        taken = target.exists() and not (target / MARK).is_file()
        if taken and not (target.is_dir() and not any(target.iterdir())):
            raise JobError(f"--out: {target} is there and is no export; name another folder")
    except OSError as error:
        raise JobError(f"--out: cannot read {target}: {error.strerror or error}") from error


@contextlib.contextmanager
def made(target: pathlib.Path) -> Generator[pathlib.Path]:
    """Give an empty folder that takes the target's place at the end; when anything is raised nothing is left of it.
    Raises JobError where it cannot be written."""
    check_target(target)
    beside, old = (target.with_name(f"{target.name}.{end}") for end in ("unfinished", "removed"))
    try:
        if old.exists() and not target.exists():
            old.rename(target)  # killed between the two renames below
        for rest in (beside, old):
            if rest.exists():
                shutil.rmtree(rest)
        beside.mkdir(parents=True)
        yield beside
        _finish(beside)
        if target.exists():
            target.rename(old)
        beside.rename(target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise JobError(f"--out: cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _finish(folder: pathlib.Path) -> None:
    """Let everybody read the files whom the user's umask lets, and force all to the disk."""
    mode = (folder / MARK).stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # safetensors are made for their owner alone
        sync(path)
    sync(folder)
