"""What this machine has measured before: a measurement is made once, until the machine or the code is another."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import Any

import torch

from sparsetrain.config.cache import cache_folder
from sparsetrain.config.files import write_whole
from sparsetrain.kernels import versions

LARGEST = 1 << 24  # bytes of a file that is read


def once(name: str, setting: Any, measure: Callable[[], dict[str, Any]], fresh: bool = False) -> dict[str, Any]:
    """Return what `measure` has returned for this setting (a dataclass) on this machine, or does now, with the date as
    "measured". A result that was kept is told on standard error. `fresh`: measure in any case."""
    path = cache_folder(os.environ) / "bench" / f"{name}-{_digest(setting)}.json"
    if not fresh and (kept := _read(path)) is not None:
        print(f"measured {kept['measured']}, kept in {path}; --fresh measures again", file=sys.stderr)
        return kept
    result = {"measured": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), **measure()}
    with contextlib.suppress(OSError):  # it only saves time
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps(result))
    return result


def _digest(setting: Any) -> str:
    """Return a hash of what a measurement depends on."""
    # The kernels' file has the processor and their source in its name.
    machine = [platform.machine(), platform.processor(), str(os.cpu_count()), torch.__version__, versions.describe()]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    told = [*machine, json.dumps(dataclasses.asdict(setting), sort_keys=True)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """Return a result of ours; anything else that may lie there is measured over."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("measured"), str)
    return found if whole and all(isinstance(found.get(key), list) for key in ("rows", "crossings")) else None
