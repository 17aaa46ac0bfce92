"""Where a user's machine keeps what can be made again: kernels, data sets, calibrations."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping


def cache_folder(env: Mapping[str, str]) -> pathlib.Path:
    """Return $XDG_CACHE_HOME/sparsetrain, in ~/.cache where that is not set; it need not exist."""
    home = env.get("XDG_CACHE_HOME") or pathlib.Path(env.get("HOME") or pathlib.Path.home()) / ".cache"
    return pathlib.Path(home) / "sparsetrain"
