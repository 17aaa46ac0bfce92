"""The whole state of a run on disk: safetensors and JSON only, written beside, fsynced, renamed; COMPLETE comes last.

Layout of `step_00000500/`: model, masks, optimizer (one, or one a rank with local steps), residual.rank00000 (with the
rank's random generators) as .safetensors; state.json; COMPLETE, which holds the digest of every file. A folder without
COMPLETE is never read, and no file whose digest differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsetrain.collective.meter import Kind
from sparsetrain.config.component import STRICT, adapter
from sparsetrain.config.job import RegimeName
from sparsetrain.config.numbers import Count
from sparsetrain.engine.optimizer_fields import fields_of

FORMAT = 1
NAME = re.compile(r"step_[0-9]{8,10}")
MOST = 1 << 26  # bytes of a file that is read as a text
Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit the job; the message names the file and the difference."""


def folder_of(root: pathlib.Path, step: int) -> pathlib.Path:
    """Return the folder of the checkpoint after `step` steps."""
    return root / f"step_{step:08d}"


def complete(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints under `root`, oldest first."""
    return sorted(path.parent for path in root.glob("step_*/COMPLETE") if NAME.fullmatch(path.parent.name))


def names_of(message: bytes) -> list[str]:
    """Return the names of checkpoints in what another rank says, without what is none: it must not lead elsewhere."""
    return [name for name in message.decode(errors="replace").split() if NAME.fullmatch(name)]


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
    digests = {path.name: digest(path) for path in sorted(final.iterdir())}
    write_text(final / "COMPLETE", json.dumps({"blake2b": digests}, indent=1))
    sync(final)
    for old in complete(final.parent)[:-keep]:
        remove(old)


def remove(folder: pathlib.Path) -> None:
    """Remove a complete checkpoint. The mark goes first: a half-removed folder is never taken for one."""
    (folder / "COMPLETE").unlink()
    shutil.rmtree(folder)


def digest(path: pathlib.Path) -> str:
    """Return the 128-bit blake2b digest of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_file(path: pathlib.Path) -> None:
    """Raise CheckpointError for what is there and is no file: a pipe would keep us waiting."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is no file")


def read_text(path: pathlib.Path) -> str:
    """Return a file's text. Raises CheckpointError for what is no file or too large, OSError, UnicodeDecodeError."""
    check_file(path)
    if path.stat().st_size > MOST:
        raise CheckpointError(f"{path}: is larger than {MOST} bytes")
    return path.read_text(encoding="utf-8")


def verify(path: pathlib.Path) -> None:
    """Raise CheckpointError when a checkpoint's file is missing or not the one that COMPLETE names."""
    try:
        named = json.loads(read_text(path.parent / "COMPLETE"))["blake2b"]
        check_file(path)
        # Ranks without a shared disk have files that rank 0 has not seen.
        if named.get(path.name, found := digest(path)) != found:
            raise CheckpointError(f"{path}: is not the file that was saved (its digest is another)")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: {type(error).__name__}: {error}") from error


def read_tensors(path: pathlib.Path) -> Tensors:
    """Return the tensors of a safetensors file. Raises CheckpointError when it is missing or damaged."""
    try:
        check_file(path)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_saved(folder: pathlib.Path, name: str) -> Tensors:
    """Return the tensors of a checkpoint's file after its digest has been compared. Raises CheckpointError."""
    verify(folder / name)
    return read_tensors(folder / name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What state.json holds: how far the run was, and on how many ranks."""

    __pydantic_config__ = STRICT
    format: int
    step: Count
    samples: Annotated[int, Field(ge=0)]
    exchanges: Count
    mask_epoch: Count
    world_size: Annotated[int, Field(ge=1, le=1 << 20)]
    wall_s: Annotated[float, Field(ge=0.0)]
    dense_steps: Annotated[float, Field(ge=0.0)]
    sent_bytes: dict[Kind, Annotated[float, Field(ge=0.0)]]
    weights_digest: str
    regimes: list[RegimeName] = dataclasses.field(default_factory=list)  # of each bucket, where they were chosen
    position: Annotated[int, Field(ge=0)] | None = None  # in the data; None: `samples`
    order: Count = 0  # of the data, see Sampler


def read_about(folder: pathlib.Path) -> About:
    """Return state.json of a checkpoint. Raises CheckpointError when it is damaged or of another format."""
    path = folder / "state.json"
    verify(path)
    try:
        about = adapter(About).validate_json(read_text(path), strict=True)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {where}: {first['msg']}") from error
    if about.format != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {about.format}, this version reads {FORMAT}")
    if folder != folder_of(folder.parent, about.step):
        raise CheckpointError(f"{path}: step {about.step} in the folder of another step")
    return about


def fitting(source: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor` on the device of `like`. Raises CheckpointError when shape or dtype differ."""
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        found, wanted = (f"{part.dtype} {tuple(part.shape)}" for part in (tensor, like))
        raise CheckpointError(f"{source} is {found}, not {wanted}")
    return tensor.to(like.device, copy=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Return the optimizer's state as `field/parameter name` -> tensor."""
    tensors: Tensors = {}
    for name, parameter in parameters.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{field}/{name}"] = torch.as_tensor(value)
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], whole: bool
) -> None:
    """Put back what `optimizer_tensors` returned; state is matched by parameter name, never by position.

    `whole`: every parameter has been stepped; otherwise one that no batch has used may have no state at all. Raises
    CheckpointError for state that is missing, does not fit or is not finite.
    """
    optimizer.state.clear()  # what a checkpoint that turned out unreadable has left
    for key, tensor in tensors.items():
        field, _, name = key.partition("/")
        if name not in parameters:
            raise CheckpointError(f"optimizer state of {name}: the model has no such parameter")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"optimizer state {key} is not finite")
        parameter = parameters[name]
        like = parameter.detach() if tensor.ndim else torch.zeros((), dtype=torch.float32)
        optimizer.state[parameter][field] = fitting(f"optimizer state {key}", tensor, like)
    fields = {field for state in optimizer.state.values() for field in state}
    if fields:  # before the first step that was not skipped there is none
        fields |= fields_of(optimizer)
    for name, parameter in parameters.items():
        own = optimizer.state.get(parameter, {})
        for field in sorted(fields - set(own)) if own or whole else ():
            raise CheckpointError(f"optimizer state {field}/{name} is missing")


def model_tensors(model: nn.Module) -> Tensors:
    """Return parameters and buffers by name; tied weights appear once, by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], source: str | pathlib.Path) -> None:
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
