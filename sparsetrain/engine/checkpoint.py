"""The whole state of a run on disk: safetensors and JSON only, written beside, fsynced, renamed; COMPLETE comes last.

Layout of `step_00000500/`: model, masks, optimizer (one, or one a rank with local steps), residual.rank00000 (with the
rank's random generators) as .safetensors; state.json; COMPLETE. A folder without COMPLETE is never read.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FORMAT = 1
Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit the job; the message names the file and the difference."""


def folder_of(root: pathlib.Path, step: int) -> pathlib.Path:
    """Return the folder of the checkpoint after `step` steps."""
    return root / f"step_{step:08d}"


def complete(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints under `root`, oldest first."""
    return sorted(path.parent for path in root.glob("step_*/COMPLETE"))


def write_tensors(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to a safetensors file and force it to the disk."""
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
    sync(path)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write `text` and force it to the disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: pathlib.Path) -> None:
    """Force a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(unfinished: pathlib.Path, final: pathlib.Path, keep: int) -> None:
    """Rename a fully written folder to its name, mark it COMPLETE and remove all but the newest `keep`. Rank 0 only."""
    if final.exists():
        shutil.rmtree(final)
    unfinished.rename(final)
    sync(final.parent)
    write_text(final / "COMPLETE", "")
    sync(final)
    for old in complete(final.parent)[:-keep]:
        # The mark goes first, so that a half-removed folder is never taken for a checkpoint.
        (old / "COMPLETE").unlink()
        shutil.rmtree(old)


def read_tensors(path: pathlib.Path) -> Tensors:
    """Return the tensors of a safetensors file. Raises CheckpointError when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_state(folder: pathlib.Path) -> dict[str, Any]:
    """Return state.json of a checkpoint. Raises CheckpointError when it is damaged or of another format."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        found = state["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'state.json'}: {error}") from error
    if found != FORMAT:
        raise CheckpointError(f"{folder}: checkpoint format {found}, this version reads {FORMAT}")
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Return the optimizer's state as `field/parameter name` -> tensor."""
    tensors: Tensors = {}
    for name, parameter in parameters.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{field}/{name}"] = torch.as_tensor(value)
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned; state is matched by parameter name, never by position."""
    for key, tensor in tensors.items():
        field, _, name = key.partition("/")
        if name not in parameters:
            raise CheckpointError(f"optimizer state of {name}: the model has no such parameter")
        parameter = parameters[name]
        value = tensor.clone() if tensor.ndim == 0 else tensor.to(parameter.device, copy=True)
        optimizer.state[parameter][field] = value


def model_tensors(model: nn.Module) -> Tensors:
    """Return parameters and buffers by name; tied weights appear once, by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], source: pathlib.Path) -> None:
    """Load weights by name. Raises CheckpointError naming the first missing, unknown or misshapen tensor."""
    own = model_tensors(model)
    for name in own:
        if name not in tensors:
            raise CheckpointError(f"{source}: has no tensor {name}")
    for name, tensor in tensors.items():
        if name not in own:
            raise CheckpointError(f"{source}: tensor {name} is not in the model")
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{source}: {name} is {tuple(tensor.shape)}, the model's is {tuple(own[name].shape)}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
