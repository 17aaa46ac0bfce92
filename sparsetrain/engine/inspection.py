"""A look into checkpoints from outside a run: what is there, and whether all of it can be used."""

from __future__ import annotations

from typing import Any

import torch

from sparsetrain.engine.checkpoint import SQUARES, About, CheckpointError, Tensors, step_of
from sparsetrain.engine.keeping import problem
from sparsetrain.engine.store import Store, Stored

OPTIMIZER = "optimizer"
SUFFIX = ".safetensors"


def rows(store: Store) -> list[dict[str, Any]]:
    """Return what is there, by step: name, step, when (seconds since 1970), bytes, world_size, eval_loss, complete, and
    as `problem` what can be seen to be wrong without reading the tensors. Raises OSError."""
    found = [_row(store, name) for name in store.complete()]
    for name in store.unfinished():
        step = step_of(name.removesuffix(".unfinished"))
        found.append({**_empty(name), "step": step, "complete": False, "problem": "not complete"})
    return sorted(found, key=lambda row: (row["step"], row["name"]))


def problems(store: Store, name: str) -> list[str]:
    """Return what is wrong with a complete checkpoint: files that are missing or not those that were saved, tensors
    that are not finite, optimizer state that has not its parameter's shape. Raises OSError."""
    stored, found = Stored(store, name), []
    try:
        about, parts = stored.about(), stored.parts()
    except CheckpointError as error:
        return [_without(error, stored)]
    wanted = {f"residual.rank{rank:05d}{SUFFIX}" for rank in range(about.world_size)}
    found += [f"{file}: is missing" for file in sorted({f"model{SUFFIX}", *wanted} - set(parts))]
    shapes: Tensors = {}
    # The model comes first: its shapes are those of the optimizer's state.
    for file in sorted(parts, key=lambda file: (file != f"model{SUFFIX}", file)):
        try:
            if not file.endswith(SUFFIX):
                stored.compare(file)
                continue
            tensors = stored.read(file.removesuffix(SUFFIX))
        except CheckpointError as error:
            found.append(_without(error, stored))
            continue
        if file == f"model{SUFFIX}":
            shapes = tensors
        found += [f"{file}: {line}" for line in _wrong(tensors, shapes if file.startswith(OPTIMIZER) else {})]
    return found


def _wrong(tensors: Tensors, shapes: Tensors) -> list[str]:
    lines = []
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            lines.append(f"{key} is not finite")
        elif key.partition("/")[0] in SQUARES and bool((tensor < 0).any()):
            lines.append(f"{key} is negative")
        like = shapes.get(key.partition("/")[2])
        if like is not None and tensor.ndim and tensor.shape != like.shape:
            lines.append(f"{key} is {tuple(tensor.shape)}, the model's is {tuple(like.shape)}")
    return lines


def _row(store: Store, name: str) -> dict[str, Any]:
    stored, row = Stored(store, name), {**_empty(name), "step": step_of(name), "complete": True}
    try:
        about: About = stored.about()
        row |= {"world_size": about.world_size, "eval_loss": about.eval_loss}
        row["problem"] = problem(store, name, contents=False)
    except CheckpointError as error:
        row["problem"] = _without(error, stored)
    return {**row, "when": stored.written, "bytes": sum(store.sizes(name).values())}


def _empty(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "step": None,
        "when": None,
        "bytes": None,
        "world_size": None,
        "eval_loss": None,
        "complete": False,
        "problem": "",
    }


def _without(error: CheckpointError, stored: Stored) -> str:
    """Return what an error says after the checkpoint's name. Raises it when it is the store's: an OSError."""
    if isinstance(error, OSError):
        raise error
    return str(error).removeprefix(f"{stored.name}/")
