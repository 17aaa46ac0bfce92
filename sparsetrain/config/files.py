"""Small files that others may read at any moment."""

from __future__ import annotations

import contextlib
import pathlib
import secrets


def write_whole(path: pathlib.Path, text: str) -> None:
    """Write a text file; readers see the old one or the new one, never a part, and nothing else is left. Raises
    OSError."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
