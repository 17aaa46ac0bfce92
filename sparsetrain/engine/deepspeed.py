"""DeepSpeed's engine around the same loop: ZeRO stages 0 to 3, with our exchange in the place of its reduction.

Gradients stay where backward left them, on the parameters (`no_sync`, and from stage 1 on `coalesce_grad_reduction`),
and the exchange replaces them by their mean. Only then DeepSpeed partitions them; the all-reduces by which it does are
of equal tensors on all ranks by then, and are answered without a byte sent. So residuals are kept by parameter in every
stage, and what is skipped never reaches DeepSpeed. Stages 1 to 3 still gather dense weights in every step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.engine import deepspeed_config
from sparsetrain.engine.checkpoint import CheckpointError, Tensors, check_optimizer_state, fitting
from sparsetrain.engine.deepspeed_stand_in import load, stand_in
from sparsetrain.engine.engine import Engine, Parts
from sparsetrain.engine.optimizer_fields import fields_of
from sparsetrain.engine.rehearsal import rehearse
from sparsetrain.engine.sharding import refusal, refuse_types
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.transition import moved


class DeepSpeed(Engine):
    """DeepSpeed with ZeRO: optimizer state (stage 1), gradients (2) and weights (3) are spread over the ranks."""

    moves = False

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`stage`: of ZeRO; 0 sends least, since from 1 on dense weights are gathered in every step. `config`: further
        settings, as in a DeepSpeed JSON, or the path of one. `saves`: when DeepSpeed's own checkpoint is written beside
        ours, into `deepspeed/` of the run folder, for its tools to read; runs resume from ours."""

        stage: Literal[0, 1, 2, 3] = 0
        config: deepspeed_config.Settings = dataclasses.field(default_factory=dict)
        saves: Literal["never", "end", "always"] = "never"

    def __init__(self, config: Config, parts: Parts, rehearses: bool = False) -> None:
        super().__init__(parts)
        job, world = parts.job, parts.world
        self.stage = config.stage
        self.config = config
        self.dtype = torch.bfloat16 if job.train.precision == "bf16" else torch.float32
        self.shards = self.stage > 0 or self.dtype == torch.bfloat16
        self.gathers = self.stage == 3
        elements = sum(parameter.numel() for parameter in self.parameters.values())
        settings = deepspeed_config.merged(job, self.stage, config.config, world.size, elements)
        if rehearses:
            settings["gradient_clipping"] = 0.0
        else:
            refuse_types(self.parameters, "deepspeed")
        self.shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        library = load(world)
        if not rehearses:
            version = f"deepspeed {library.__version__}" + (" with this engine.config" if config.config else "")
            rehearse(lambda small: DeepSpeed(config, small, rehearses=True), parts, version)
        self.choke = stand_in(library, world)
        self.engine = library.initialize(model=Loss(self.model), optimizer=self.optimizer, config=settings)[0]
        self.holding = contextlib.ExitStack()

    @classmethod
    def refuses(cls, job: Job) -> str:
        """See Engine."""
        stage = job.engine.config.stage
        try:
            deepspeed_config.merged(job, stage, job.engine.config.config, job.cluster.workers.max, 1)
        except JobError as error:
            return str(error)
        return refusal(job, stage > 0 or job.train.precision == "bf16", stage == 3)

    def begin(self) -> None:
        """See Engine."""
        self.skip()
        waits = self.engine.coalesce_grad_reduction if self.stage else self.engine.no_sync
        self.holding.enter_context(waits())

    def backward(self, batch: tuple[Tensor, ...], share: float) -> float:
        """See Engine."""
        loss = self.engine(*batch)
        self.engine.backward(loss * share if share != 1.0 else loss)
        return float(loss.detach())

    def gradient(self, name: str) -> Tensor:
        """See Engine."""
        parameter = self.parameters[name]
        if parameter.grad is None:
            return torch.zeros(self.shapes[name], dtype=parameter.dtype, device=parameter.device)
        return parameter.grad

    @torch.no_grad()
    def step(self, step: int, means: Mapping[str, Tensor], norm: float) -> None:
        """See Engine."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                with self._gathered([parameter]):
                    parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(means[name])
        self.pull(step)
        elements = sum(shape.numel() for shape in self.shapes.values()) if self.stage else 0
        with self.choke.answering(elements):
            self.holding.close()
        self.engine.step()

    def skip(self) -> None:
        """See Engine."""
        for parameter in self.parameters.values():
            parameter.grad = None
        with self.choke.answering():
            self.holding.close()

    def inputs(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See Engine: fractions come in the weights' type."""
        return tuple(part.to(self.dtype) if part.is_floating_point() else part for part in batch)

    def whole(self, change: bool = False) -> contextlib.AbstractContextManager[None]:
        """See Engine."""
        return self._gathered(list(self.model.parameters()), change)

    @property
    def transitions(self) -> torch.optim.Optimizer | None:
        """See Engine."""
        return None if self.shards else self.optimizer

    @torch.no_grad()
    def follow(self, old: MaskSet, new: MaskSet) -> None:
        """See Engine. Weights in fp32, where there are some beside those of the model, take what was given to these
        where they left the mask or came into it. Collective; inside `whole`."""
        if not self.shards:
            return
        for name, before, after in old.changes(new):
            self._follow(self.parameters[name], before, after)

    def state(self) -> Tensors:
        """See Engine."""
        if not self.shards:
            return super().state()
        return {key: tensor.detach() for key, tensor in self._shard().items()}

    @torch.no_grad()
    def load_state(self, tensors: Tensors, whole: bool) -> None:
        """See Engine."""
        if not self.shards:
            super().load_state(tensors, whole)
            return
        own, owners = self._shard(), self._owners()
        wanted = {f"{field}/{place}" for place in owners for field in (fields_of(self.optimizer) if whole else ())}
        for key in sorted(wanted | set(own)):
            if key not in tensors:
                raise CheckpointError(f"optimizer state {key} is missing")
        for key, tensor in tensors.items():
            field, _, place = key.partition("/")
            if place not in owners:
                raise CheckpointError(f"optimizer state {key}: this rank's shard has no such tensor")
            check_optimizer_state(key, tensor)
            like = own.get(key, owners[place].detach() if tensor.ndim else torch.zeros(()))
            fits = fitting(f"optimizer state {key}", tensor, like)
            if key in own:
                own[key].copy_(fits)  # DeepSpeed has views of it
            else:
                self.optimizer.state[owners[place]][field] = fits  # some state begins with the first step

    def saved(self, folder: pathlib.Path, step: int, last: bool) -> str:
        """See Engine."""
        if self.config.saves == "never" or (self.config.saves == "end" and not last):
            return ""
        try:
            self.engine.save_checkpoint(str(folder / "deepspeed"), tag=f"step_{step:08d}")
        except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
            return f"DeepSpeed's own checkpoint of step {step} is not written: {error}"
        return ""

    def close(self) -> None:
        """See Engine."""
        self.engine.destroy()

    def _shard(self) -> Tensors:
        """Return this rank's weights in fp32 and their optimizer state, by number of group and tensor."""
        tensors: Tensors = {}
        for place, owner in self._owners().items():
            tensors[f"master/{place}"] = owner.data
            for field, value in self.optimizer.state.get(owner, {}).items():
                if torch.is_tensor(value):
                    tensors[f"{field}/{place}"] = value
        return tensors

    def _owners(self) -> dict[str, Tensor]:
        """Return the tensors that the optimizer steps on this rank, as group/place."""
        groups = [group["params"] for group in self.optimizer.param_groups]
        if self.stage == 3:
            groups = [[tensor] for tensor in self.engine.optimizer.fp32_partitioned_groups_flat]
        numbered = ((f"{n}/{place}", owner) for n, group in enumerate(groups) for place, owner in enumerate(group))
        return dict(numbered)

    def _follow(self, parameter: nn.Parameter, before: Tensor, after: Tensor) -> None:
        """Bring the fp32 weight and the moments of a parameter to its new mask."""
        stayed = before & after
        if not self.stage:
            master = self._masters()[parameter]
            master.copy_(torch.where(stayed, master, parameter.float()))
            for field, value in self.optimizer.state.get(master, {}).items():
                if torch.is_tensor(value) and value.shape == master.shape:
                    value.copy_(moved(field, value, stayed, after))
            return
        import deepspeed

        utils: Any = deepspeed.utils
        master = utils.safe_get_full_fp32_param(parameter)
        utils.safe_set_full_fp32_param(parameter, torch.where(stayed, master, parameter.float()))
        for field in self._fields():
            value = utils.safe_get_full_optimizer_state(parameter, field)
            utils.safe_set_full_optimizer_state(parameter, moved(field, value, stayed, after), field)

    def _fields(self) -> list[str]:
        """Return the names of the optimizer's state that has a value for every weight."""
        for master, state in self.optimizer.state.items():
            return [field for field, value in state.items() if torch.is_tensor(value) and value.shape == master.shape]
        return []

    def _masters(self) -> dict[nn.Parameter, Tensor]:
        """Return the fp32 weights of stage 0 by those of the model."""
        wrapper = self.engine.optimizer
        pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
        return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}

    def _gathered(self, parameters: list[nn.Parameter], change: bool = False) -> contextlib.AbstractContextManager[Any]:
        if not self.gathers:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if change else None)


class Loss(nn.Module):
    """A model whose forward is the mean loss of a batch, as DeepSpeed wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> Tensor:
        """Return the mean loss."""
        return self.model.loss(batch)  # pyrefly: ignore[not-callable]
