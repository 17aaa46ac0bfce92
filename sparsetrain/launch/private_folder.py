"""A folder for the files of Ray that this process starts; those of processes that were killed are removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Generator

from sparsetrain.launch.signals import undisturbed

PREFIX, LOCK = "st-", "lock"  # the file that whoever made the folder holds
MAX_TEMPORARY = 24  # characters of the system's folder for temporary files


@contextlib.contextmanager
def private_folder() -> Generator[pathlib.Path]:
    """Yield a new folder for this user only; Ray makes its own one, inside, writable for all.

    Ray puts Unix sockets there, 67 characters below, and their paths have at most 107.
    """
    usual = tempfile.gettempdir()
    usual = usual if len(usual) <= MAX_TEMPORARY else "/tmp"
    sweep(pathlib.Path(usual))
    folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=usual))
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)


def sweep(temporary: pathlib.Path) -> None:
    """Remove the folders of this user that nobody holds any more."""
    for folder in temporary.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not (folder / LOCK).is_file():
                continue
            with (folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
