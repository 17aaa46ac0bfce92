"""The whole state of a run in files: safetensors and JSON only.

Layout of `step_00000500/`: model, masks, optimizer (one, or one a rank with local steps), residual.rank00000 (with the
rank's random generators) as .safetensors; state.json; what each rank has written as parts.rank00000.json; COMPLETE,
which holds the digest of every file of the state and comes last. What has no COMPLETE is never read, and no file whose
digest differs. Where they lie is a store's affair (see store).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
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
from sparsetrain.masks.maskset import MaskSet, whole

FORMAT = 1
SQUARES = ("exp_avg_sq",)  # fields of optimizers that hold means of squares
MOST = 1 << 26  # bytes of a file that is read as a text
Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit the job; the message names the file and the difference."""


def name_of(step: int) -> str:
    """Return the name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's name; None for any other name."""
    found = re.fullmatch(r"step_([0-9]{8,10})", name)
    return int(found[1]) if found else None


def complete(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    found = {path.parent: step_of(path.parent.name) for path in root.glob("step_*/COMPLETE")}
    return sorted((path for path, step in found.items() if step is not None), key=lambda path: found[path] or 0)


def write_tensors(path: pathlib.Path, tensors: Mapping[str, Tensor], told: Mapping[str, str] | None = None) -> None:
    """Write `tensors` to a safetensors file, `told` as its metadata, and force it to the disk. Raises OSError."""
    metadata = None if told is None else dict(told)
    try:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # a full disk, say
        raise OSError(f"{path.name}: {error}") from error
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


def read_tensors(path: pathlib.Path) -> Tensors:
    """Return the tensors of a safetensors file. Raises CheckpointError when it is missing or damaged."""
    try:
        check_file(path)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def pretrained(path: pathlib.Path, like: Tensors) -> Tensors:
    """Return the weights of a safetensors file for a model of `like`; those that a run has saved as the values of their
    update sets alone are made whole by the masks beside the file. Raises CheckpointError."""
    tensors, beside = read_tensors(path), path.parent / "masks.safetensors"
    values = {name: like[name] for name, t in tensors.items() if name in like and t.ndim == 1 < like[name].ndim}
    if not values or not beside.is_file():
        return tensors
    packed = read_tensors(beside)
    try:
        masks = MaskSet.from_packed(packed, {name: values[name] for name in values if name in packed}, 0)
    except ValueError as error:
        raise CheckpointError(f"{beside}: {error}") from error
    return tensors | {name: whole(tensors[name], masks.update(name).to(tensors[name].device)) for name in masks.masks}


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
    ways: dict[str, str] = dataclasses.field(default_factory=dict)  # how layers multiply, where that was chosen
    eval_loss: float | None = None  # of the evaluation at this very step


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Return the 128-bit blake2b digest of named tensors in their order, as hex."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in weights.items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def parse_about(text: str, where: str) -> About:
    """Return what a state.json says. Raises CheckpointError that begins with `where` when it is damaged or of another
    format."""
    try:
        about = adapter(About).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{where}: {place}: {first['msg']}") from error
    if about.format != FORMAT:
        raise CheckpointError(f"{where}: checkpoint format {about.format}, this version reads {FORMAT}")
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


def check_optimizer_state(key: str, tensor: Tensor) -> None:
    """Raise CheckpointError for a tensor `FIELD/PARAMETER` that no optimizer can have come to."""
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"optimizer state {key} is not finite")
    if key.partition("/")[0] in SQUARES and bool((tensor < 0).any()):
        raise CheckpointError(f"optimizer state {key} is negative")


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
        check_optimizer_state(key, tensor)
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


def load_model(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str | pathlib.Path) -> None:
    """Load weights by name into a model's own. Raises CheckpointError naming the first missing, unknown or misshapen
    tensor."""
    for name in own:
        if name not in tensors:
            raise CheckpointError(f"{source}: has no tensor {name}")
    for name, tensor in tensors.items():
        if name not in own:
            raise CheckpointError(f"{source}: tensor {name} is not in the model")
        fitting(f"{source}: {name}", tensor, own[name])
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
