"""Everything is killed and goes on from its checkpoint: bit for bit the run in which nothing happened."""

import functools
import pathlib

import pytest
import torch
from ranks import gloo_ranks
from small import job, run_and_die

from sparsetrain.collective.world import World
from sparsetrain.engine.pieces import capture
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer

OPTIMIZERS = {
    "sgd": "optimizer={name: sgd, learning_rate: 0.1, momentum: 0.9}",
    "plain": "optimizer={name: sgd, learning_rate: 0.1, momentum: 0}",
    "adamw": "optimizer={name: adamw, learning_rate: 0.01}",
}
# Error feedbacks and regimes, with what else they need; masks change after steps 4 and 8.
WAYS = {
    "ef14 sparse": (),
    "ef14 sparse, bf16 residual": ("exchange.residual=bf16", "exchange.warmup=0.4"),
    "ef14 sparse, int8 residual": ("exchange.residual=int8", "exchange.values=int8"),
    "ef14 packed": ("exchange.regime=packed",),
    "ef14 dense": ("exchange.regime=dense",),
    "ef14 lowrank": ("exchange.regime=lowrank", "exchange.rank=1"),
    "none sparse": ("exchange.error_feedback=none",),
    "none lowrank": ("exchange.error_feedback=none", "exchange.regime=lowrank", "exchange.rank=1"),
    "dgc sparse": ("exchange.error_feedback=dgc",),
    "dgc packed": ("exchange.error_feedback=dgc", "exchange.regime=packed"),
    "ef21 sparse": ("exchange.error_feedback=ef21",),
    "ef21 dense": ("exchange.error_feedback=ef21", "exchange.regime=dense"),
    "ef21_sgdm sparse": ("exchange.error_feedback=ef21_sgdm",),
    "ok_topk": ("exchange.collective=ok_topk",),
    "split_reduce": ("exchange.collective=split_reduce",),
    "gtopk": ("exchange.collective=gtopk",),
    "recursive_doubling": ("exchange.collective=recursive_doubling",),
    "hierarchical": ('exchange.collective={"name":"hierarchical","group":1}', "exchange.error_feedback=ef21"),
    "hierarchical, one node": ("exchange.collective=hierarchical",),
    "local steps": ("exchange.every=2", "exchange.outer.momentum=0.5", "exchange.density=0.2"),
    "local steps ef21": ("exchange.every=2", "exchange.error_feedback=ef21"),
    "local steps packed": ("exchange.every=2", "exchange.regime=packed"),
}
STOPS = (2, 4, 6, 8, 10)


def compare(world: World, folder: str, optimizer: str, compute: str) -> list[str]:
    """Return the ways in which a killed and resumed run is not the straight one, and where it differs."""
    wrong = []
    for number, (way, settings) in enumerate(WAYS.items()):
        momentum = optimizer == "sgd" and "dgc" in way
        wanted = (OPTIMIZERS["plain" if momentum else optimizer], *settings, "checkpoint.every=2", f"compute={compute}")
        root = pathlib.Path(folder) / str(number)
        straight = trained(world, root / "a", wanted)
        stopped = Trainer(build(job(*wanted), world), root / "b", lambda line: None)
        run_and_die(stopped, STOPS[number % len(STOPS)])
        stopped.state.exchange.close()
        stopped.recorder.close("failed")
        resumed = trained(world, root / "b", wanted)
        for group, tensors in straight.items():
            for name, tensor in tensors.items():
                if not torch.equal(tensor, resumed[group][name]):
                    wrong.append(f"{way}: {group} {name}")
                    break
    return wrong


def trained(world: World, folder: pathlib.Path, wanted: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    """Return everything that a rank's run has come to."""
    trainer = Trainer(build(job(*wanted), world), folder, lambda line: None)
    trainer.run()
    trainer.close("finished")
    return capture(trainer.state).copied().groups


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "compute"), [("sgd", "masked"), ("adamw", "masked"), ("adamw", "sparse")])
def test_killed_and_resumed_is_straight_in_every_way(tmp_path, optimizer, compute):
    body = functools.partial(compare, folder=str(tmp_path), optimizer=optimizer, compute=compute)
    assert gloo_ranks(2, body, seconds=280) == [[], []]
