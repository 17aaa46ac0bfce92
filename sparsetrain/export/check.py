"""Whether exports compute what the run's model does: loaded here, and in a process that has no sparsetrain."""

from __future__ import annotations

import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparsetrain.engine.checkpoint import write_tensors
from sparsetrain.export import fresh
from sparsetrain.export.fresh import TOLERANCE, difference
from sparsetrain.export.program import PROGRAM, write_program
from sparsetrain.export.trained import Trained

TIMEOUT_S = 300.0


class Differs(ValueError):
    """An export that does not give back what was trained; the message says by how much, or what failed."""


@torch.no_grad()
def compare(module: nn.Module, trained: Trained) -> float:
    """Return how far the outputs of what was loaded back are from the run's. Raises Differs above TOLERANCE."""
    found = difference(module(trained.inputs), trained.outputs)
    if math.isnan(found) or found > TOLERANCE:
        raise Differs(f"loaded back, its outputs differ by {found:.1e}, more than {TOLERANCE:g}")
    return found


def alone(trained: Trained, folders: Mapping[str, pathlib.Path]) -> dict[str, dict[str, Any]]:
    """Return by name how each export is loaded without sparsetrain, and how far its outputs are from the run's; see
    `fresh`, in whose one process this happens. A model that torch.export cannot write is compared by its tensors
    alone."""
    if not folders:
        return {}
    with tempfile.TemporaryDirectory() as place:
        probe = pathlib.Path(place)
        state = {f"{fresh.STATE}{name}": tensor for name, tensor in trained.tensors.items()}
        write_tensors(probe / fresh.PROBE, {"input": trained.inputs, "output": trained.outputs, **state})
        try:
            write_program(trained.model, trained.inputs, probe / PROGRAM)
        except OSError:
            raise
        except Exception:  # whatever torch.export does with a user's model
            (probe / PROGRAM).unlink(missing_ok=True)
        found = _asked(probe, [str(folder) for folder in folders.values()])
    return {name: found[str(folder)] for name, folder in folders.items()}


def verdict(found: Mapping[str, Any]) -> str:
    """Return what is wrong with an export by what `alone` says of it, "" where nothing is."""
    if "error" in found:
        return f"it cannot be loaded without sparsetrain: {found['error']}"
    if found["same"] is False:
        return "loaded without sparsetrain, its tensors are not the run's"
    apart = found["difference"]
    if apart is not None and not apart <= TOLERANCE:
        return f"loaded without sparsetrain, its outputs differ by {apart:.1e}, more than {TOLERANCE:g}"
    return ""


def _asked(probe: pathlib.Path, folders: list[str]) -> dict[str, Any]:
    # Torch may be where -I would not look; sparsetrain is kept out by fresh itself.
    command = [sys.executable, "-P", "-B", fresh.__file__, str(probe), *folders]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, LookupError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return {folder: {"error": lines[-1] if lines else type(error).__name__} for folder in folders}
