"""What a run has trained, out of its newest complete checkpoint or the one of a step."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsetrain import registry
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import load_job
from sparsetrain.engine import checkpoint
from sparsetrain.engine.checkpoint import About, CheckpointError, Tensors
from sparsetrain.engine.pieces import BROKEN, SHARED
from sparsetrain.engine.state import couplings, maskable
from sparsetrain.engine.store import Store, Stored, open_store
from sparsetrain.launch.run import find_folder
from sparsetrain.masks.chooser import Chooser
from sparsetrain.masks.maskset import UPDATE, MaskSet, whole
from sparsetrain.masks.saved import check_inactive
from sparsetrain.masks.schedule import Span

SAMPLES = 64  # at most in the batch that outputs are compared on
LEAST = 2  # of one sample torch.export makes a program for one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model, computing as it does in evaluation: weights outside the forward sets of its masks are zero.

    `checkpoint` is the name of the one that it comes from, `inputs` the first tensor of some held-out samples, and
    `outputs` what the model makes of it.
    """

    job: Job
    folder: pathlib.Path
    checkpoint: str
    about: About
    model: Any
    masks: MaskSet
    data: dict[str, Any]
    inputs: Tensor
    outputs: Tensor

    @functools.cached_property
    def tensors(self) -> Tensors:
        """Return weights and the buffers that belong to them by name, tied ones once, by their first name."""
        kept = self.model.state_dict()
        return {name: t.detach() for name, t in checkpoint.model_tensors(self.model).items() if name in kept}

    @functools.cached_property
    def tied(self) -> dict[str, str]:
        """Return the other names of tied weights, each with the first one."""
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}

    @property
    def dense_bytes(self) -> int:
        """Return the bytes of all tensors as they are."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @functools.cached_property
    def bound_bytes(self) -> float:
        """Return the bytes of the values that the masks keep, and of the masks' entropy: log2 of how many masks of so
        many active weights each tensor has."""
        total = 0.0
        for name, tensor in self.tensors.items():
            size, kept = tensor.numel(), tensor.numel()
            if name in self.masks.masks:
                kept = int(self.masks.masks[name].sum())
            ways = math.lgamma(size + 1) - math.lgamma(kept + 1) - math.lgamma(size - kept + 1)
            total += kept * tensor.element_size() + ways / math.log(2) / 8
        return total


def load_trained(run: str, step: int | None, say: Callable[[str], None]) -> Trained:
    """Return what a run (a name or a folder) has trained after `step` steps, or at its newest checkpoint that can be
    read; `say` gets a line about each that cannot. Raises JobError where there is none."""
    folder = find_folder(run)
    job = load_job(str(folder / "job.yaml"))
    try:
        store = open_store(job, folder)
        names = _names(run, store, step)
    except OSError as error:
        raise JobError(f"checkpoints: {error}") from error
    model = job.model.build().eval()
    for name in reversed(names):
        try:
            about, masks = _restore(job, model, Stored(store, name))
        except (CheckpointError, *BROKEN) as error:
            if step is not None:
                raise JobError(f"--step {step}: {error}") from error
            say(f"checkpoint {name} skipped: {error}")
            continue
        data = job.data.build()
        describe = data.describe() if hasattr(data, "describe") else {}
        samples = min(max(job.train.batch_size, LEAST), SAMPLES, data.eval_size)
        inputs = data.eval_batch(torch.arange(samples))[0]
        return Trained(
            job=job,
            folder=folder,
            checkpoint=name,
            about=about,
            model=model,
            masks=masks,
            data=dict(describe),
            inputs=inputs,
            outputs=_outputs(model, inputs),
        )
    raise JobError(f"{run}: none of the {len(names)} checkpoints in {store.name} is readable")


def _names(run: str, store: Store, step: int | None) -> list[str]:
    names = store.complete()
    if not names:
        raise JobError(f"{run}: no complete checkpoint in {store.name}")
    if step is None:
        return names
    if checkpoint.name_of(step) not in names:
        steps = ", ".join(str(checkpoint.step_of(name)) for name in names)
        raise JobError(f"--step: no complete checkpoint after step {step}; allowed: {steps}")
    return [checkpoint.name_of(step)]


@torch.no_grad()
def _restore(job: Job, model: Any, stored: Stored) -> tuple[About, MaskSet]:
    """Put a checkpoint's weights into the model as evaluation sees them. Raises CheckpointError, and what BROKEN
    names."""
    about, tensors, packed = stored.about(), stored.read("model"), stored.read("masks")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{stored.name}: {name} is not finite")
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    beside = tuple(f"{part}/" for part in SHARED)
    named = [key.removeprefix(UPDATE) for key in packed if not key.startswith(beside)]
    if unknown := sorted(set(named) - set(parameters)):
        raise CheckpointError(f"{stored.name}: a mask of {unknown[0]}, which the model does not have")
    like = {name: tensor for name, tensor in parameters.items() if name in named}
    masks = MaskSet.from_packed(packed, like, about.mask_epoch)
    tensors = {name: whole(tensor, masks.update(name) if name in like else None) for name, tensor in tensors.items()}
    checkpoint.load_model(checkpoint.model_tensors(model), tensors, stored.name)
    learned = _check_masks(job, model, masks, about.step)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not learned and checkpoint.digest_of({name: tensors[name] for name in trained}) != about.weights_digest:
        raise CheckpointError(f"{stored.name}: weights do not have the digest that state.json names")
    check_inactive(masks, parameters)
    for name, mask in masks.masks.items():
        parameters[name].copy_(torch.where(mask, parameters[name], 0.0))
    return about, masks


def _check_masks(job: Job, model: Any, masks: MaskSet, step: int) -> bool:
    """Return whether the method had parameters of its own. Raises CheckpointError where masks are missing, and JobError
    where those parameters still take part in what the model computes."""
    if job.masks is None:
        return False
    if not masks.masks:
        raise CheckpointError("no masks, though the job has some")
    wanted = _masked(job, model)
    if lacking := sorted(wanted - set(masks.masks)):
        raise CheckpointError(f"no mask of {lacking[0]}, which the job masks")
    if more := sorted(set(masks.masks) - wanted):
        raise CheckpointError(f"a mask of {more[0]}, which the job does not mask")
    learned = bool(getattr(registry.load("mask_method", job.masks.method.name), "learns_budget", False))
    if learned and not masks.limits:
        method = job.masks.method.name
        raise JobError(f"masks.method: {method} still learns its masks at step {step}; allowed: a later checkpoint")
    return learned


def _masked(job: Job, model: Any) -> set[str]:
    """Return the names of the weights that the job masks."""
    config, parameters = job.masks, dict(model.named_parameters())
    assert config is not None
    span = Span(job.train.steps, config.begin, config.end, config.every)
    chooser = Chooser(config, parameters, maskable(model, parameters), couplings(config, model), job.seed, span)
    return set(chooser.parameters)


@torch.no_grad()
def _outputs(model: Any, inputs: Tensor) -> Tensor:
    """Return what a model makes of the inputs. Raises JobError where that is no tensor."""
    try:
        found = model(inputs)
    except Exception as error:  # whatever a user's model does
        raise JobError(
            f"model: it does not compute from the first tensor of a batch, which exports are compared by "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not isinstance(found, Tensor):
        raise JobError(f"model: it computes a {type(found).__name__} from the first tensor of a batch, not a tensor")
    return found
