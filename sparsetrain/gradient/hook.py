"""The third door: our exchange as a communication hook of DistributedDataParallel.

    state = HookState(exchange_config, model, world, steps)
    ddp.register_comm_hook(state, comm_hook)

DDP rebuilds its buckets after the first iteration, so the residual belongs to parameter names, never to bucket numbers.
"""

import dataclasses

import torch
import torch.distributed as dist

from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.exchange import GradientExchange


class HookState:
    """The exchange of each DDP bucket, found by the names of its parameters; residuals follow the names.

    The hook sees gradients as backward left them: so use fp32 or bf16, not a loss scaler. Raises JobError where the
    configuration makes no sense in a hook.
    """

    def __init__(self, config: Exchange, model: torch.nn.Module, world: World, steps: int) -> None:
        if config.every != 1:
            raise JobError(f"exchange.every: {config.every} in a hook, which sees every step's gradients; allowed: 1")
        if config.regime == "auto":
            raise JobError("exchange.regime: auto in a hook, which sees no whole step; allowed: any other")
        self.config = config
        self.world = world
        self.steps = steps
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.exchanges: dict[tuple[str, ...], GradientExchange] = {}
        self._stray: dict[str, torch.Tensor] = {}

    def exchange_of(self, names: tuple[str, ...], gradients: dict[str, torch.Tensor]) -> GradientExchange:
        """Return the exchange of the bucket with these parameters; a new bucket inherits their residuals."""
        if names not in self.exchanges:
            shapes = {name: tuple(gradient.shape) for name, gradient in gradients.items()}
            device = next(iter(gradients.values())).device
            # A hook is called bucket by bucket and answers at once: there is nothing left to overlap with.
            config = dataclasses.replace(self.config, overlap=False)
            fresh = GradientExchange(config, shapes, self.world, self.steps, device)
            for key in [key for key in self.exchanges if set(key) & set(names)]:
                old = self.exchanges.pop(key)
                fresh.step = max(fresh.step, old.step)
                self._stray.update(old.state())
            fresh.load_state({key: self._stray.pop(key) for key in list(self._stray) if _name(key) in names})
            self.exchanges[names] = fresh
        return self.exchanges[names]

    def state(self) -> dict[str, torch.Tensor]:
        """Return what this rank keeps, `residual/parameter name`: put it into your checkpoint, one file a rank."""
        merged = dict(self._stray)
        for exchange in self.exchanges.values():
            merged.update(exchange.state())
        return merged

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state` returned, before the first backward."""
        self.exchanges.clear()
        self._stray = dict(state)


def _name(key: str) -> str:
    return key.partition("/")[2]


def comm_hook(state: HookState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Return a finished future with the bucket's mean gradient; all NaN where a rank's gradient was not finite.

    Every collective is issued here, on the thread of backward and in bucket order, never from a callback.
    """
    names = tuple(state.names[id(parameter)] for parameter in bucket.parameters())
    gradients = dict(zip(names, bucket.gradients(), strict=True))
    means = state.exchange_of(names, gradients).aggregate(gradients)
    for name, gradient in gradients.items():
        if means is None:
            gradient.fill_(float("nan"))
        else:
            gradient.copy_(means[name])
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
