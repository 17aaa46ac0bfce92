"""Torch's FSDP2 around the same loop: weights, gradients and optimizer state are spread over the ranks.

Its reduce-scatter is ours (`set_custom_reduce_scatter`): it keeps what a rank has of each gradient and sends nothing.
The exchange takes the gradients by parameter from there, and the optimizer steps a rank's rows of the weights with its
rows of the mean. Dense weights are still gathered for every forward and backward pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.engine.checkpoint import CheckpointError, Tensors, check_optimizer_state, fitting
from sparsetrain.engine.engine import Answer, Engine, Parts
from sparsetrain.engine.fsdp_comm import Gather, Keep
from sparsetrain.engine.optimizer_fields import fields_of
from sparsetrain.engine.rehearsal import rehearse
from sparsetrain.engine.sharding import refusal, refuse_types
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.transition import moved


class FSDP(Engine):
    """Torch's fully_shard (FSDP2): every rank holds some rows of each tensor, and their optimizer state."""

    shards = gathers = True
    moves = False

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Every member of a ModuleList is gathered for itself, what else there is together."""

    def __init__(self, config: Config, parts: Parts, rehearses: bool = False) -> None:
        super().__init__(parts)
        job, world = parts.job, parts.world
        self.transport, self.clip = world.transport, job.train.clip
        if world.size < 2:
            raise JobError("cluster.workers: 1 with engine fsdp, which spreads over ranks; allowed: 2 or more")
        refuse_types(dict(self.model.named_parameters()), "fsdp")
        if not rehearses:
            rehearse(lambda small: FSDP(config, small, rehearses=True), parts, f"torch {torch.__version__}'s FSDP2")
        self.dtype = torch.bfloat16 if job.train.precision == "bf16" else torch.float32
        # Whole tensors by name; their values are here inside `whole` only.
        self.held = dict(self.model.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in self.held.items()}
        self.root = Asked(self.model)
        self.keeps = self._shard(world)
        self.sharded: dict[str, Any] = {
            name.removeprefix("model."): parameter for name, parameter in self.root.named_parameters()
        }
        with torch.no_grad():
            self.rows = {name: nn.Parameter(sharded.to_local()) for name, sharded in self.sharded.items()}
        names = {id(parameter): name for name, parameter in self.held.items()}
        for group in self.optimizer.param_groups:
            group["params"] = [self.rows[names[id(parameter)]] for parameter in group["params"]]
        self.depth = 0
        self._empty()

    @classmethod
    def refuses(cls, job: Job) -> str:
        """See Engine."""
        return refusal(job, shards=True, gathers=True)

    def begin(self) -> None:
        """See Engine."""
        for keep in self.keeps:
            keep.forget()

    def backward(self, batch: tuple[Tensor, ...], share: float) -> float:
        """See Engine."""
        loss = self.root(lambda model: model.loss(batch))
        (loss * share if share != 1.0 else loss).backward()
        for sharded in self.sharded.values():
            sharded.grad = None  # the mean is not there yet
        return float(loss.detach())

    def answer(self, ask: Callable[[Any], Answer]) -> Answer:
        """See Engine."""
        return self.root(ask)

    def gradient(self, name: str) -> Tensor:
        """See Engine."""
        (keep,) = (keep for keep in self.keeps if name in keep.names)
        return keep.gradient(name)

    @torch.no_grad()
    def step(self, step: int, means: Mapping[str, Tensor], norm: float) -> None:
        """See Engine."""
        factor = min(1.0, self.clip / (norm + 1e-6)) if self.clip else 1.0
        for name in self.parameters:
            mean = means[name] if factor == 1.0 else means[name] * factor
            self.rows[name].grad = self._own(mean).to(self.rows[name].dtype)
        self.optimizer.step()
        self.begin()

    def skip(self) -> None:
        """See Engine."""
        self.begin()

    def inputs(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See Engine: fractions come in the type that is computed with."""
        return tuple(part.to(self.dtype) if part.is_floating_point() else part for part in batch)

    def tensors(self) -> Tensors:
        """See Engine."""
        return {**self.held, **dict(self.model.named_buffers())}

    @contextlib.contextmanager
    def whole(self, change: bool = False) -> Generator[None]:
        """See Engine."""
        self.depth += 1
        try:
            if self.depth == 1:
                for name, parameter in self.held.items():
                    parameter.data = self._full(self.rows[name].detach(), name)
            yield
            if change:
                with torch.no_grad():
                    for name, parameter in self.held.items():
                        self.rows[name].copy_(self._own(parameter))
        finally:
            self.depth -= 1
            if not self.depth:
                self._empty()

    @property
    def transitions(self) -> torch.optim.Optimizer | None:
        """See Engine."""
        return None

    @torch.no_grad()
    def follow(self, old: MaskSet, new: MaskSet) -> None:
        """See Engine. Collective."""
        for name, before, after in old.changes(new):
            rows = self.rows[name]
            for field, value in self.optimizer.state.get(rows, {}).items():
                if torch.is_tensor(value) and value.shape == rows.shape and value.ndim:
                    whole = self._full(value, name)
                    value.copy_(self._own(moved(field, whole, before & after, after)))

    def state(self) -> Tensors:
        """See Engine."""
        fields = ((name, self.optimizer.state.get(rows, {})) for name, rows in self.rows.items())
        return {
            f"{field}/{name}": torch.as_tensor(value)
            for name, state in fields
            for field, value in state.items()
            if value is not None
        }

    def load_state(self, tensors: Tensors, whole: bool) -> None:
        """See Engine."""
        self.optimizer.state.clear()
        for key, tensor in tensors.items():
            field, _, name = key.partition("/")
            if name not in self.rows:
                raise CheckpointError(f"optimizer state of {name}: the model has no such parameter")
            check_optimizer_state(key, tensor)
            rows = self.rows[name]
            like = rows.detach() if tensor.ndim else torch.zeros((), dtype=torch.float32)
            self.optimizer.state[rows][field] = fitting(f"optimizer state {key}", tensor, like)
        for name in self.parameters if whole else ():
            for field in sorted(fields_of(self.optimizer) - set(self.optimizer.state.get(self.rows[name], {}))):
                raise CheckpointError(f"optimizer state {field}/{name} is missing")

    def _shard(self, world: World) -> list[Keep]:
        """Give the model to FSDP2, and return what keeps the gradients of each part that is gathered for itself."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(world.transport.device.type, (world.size,))
        policy = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        units = [child for module in lists for child in module if any(True for _ in child.parameters())]
        names = {id(parameter): name for name, parameter in self.held.items()}
        order = [*reversed(units), self.root]  # those inside first
        parts, taken = [], set()
        for unit in order:
            parts.append([names[id(p)] for p in unit.parameters() if id(p) not in taken and p.requires_grad])
            taken |= {id(p) for p in unit.parameters()}
        keeps = [Keep(world, part, self.shapes) for part in parts]
        for unit, keep in zip(order, keeps, strict=True):
            module: Any = fully_shard(unit, mesh=mesh, mp_policy=policy)
            module.set_custom_all_gather(Gather(world.transport.meter))
            module.set_custom_reduce_scatter(keep)
        return keeps

    def _own(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of a whole tensor, as FSDP2 deals them."""
        size = -(-whole.shape[0] // self.transport.size)
        return whole[self.transport.rank * size : (self.transport.rank + 1) * size]

    def _full(self, rows: Tensor, name: str) -> Tensor:
        """Return the whole of all ranks' rows of a tensor. Collective."""
        shape = self.shapes[name]
        size = -(-shape[0] // self.transport.size)
        padded = torch.zeros((size, *shape[1:]), dtype=rows.dtype, device=rows.device)
        padded[: rows.shape[0]] = rows
        return torch.cat(self.transport.all_gather(padded, "weight"))[: shape[0]].clone()

    def _empty(self) -> None:
        for parameter in self.held.values():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


class Asked(nn.Module):
    """A model whose forward answers a question about it: what FSDP2 does around a forward pass is done around that."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ask: Callable[[Any], Answer]) -> Answer:
        """Return the answer."""
        return ask(self.model)
