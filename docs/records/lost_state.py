"""What a rank's own state is worth to a run with local steps: the same run, with one rank's share of it lost once.

    torchrun --standalone --nproc-per-node 4 docs/records/lost_state.py STEPS [AT ...] [a.b=c ...]

Right after the exchange of step AT (default 20, 40, 60) one rank, in turn each of them, forgets its residual, takes the
optimizer's state of the next one, or both, as a rank does that has taken a lost one's place. The job is JOB below, with
what is said of it in addition. Prints the last losses.
"""

from __future__ import annotations

import datetime
import pathlib
import statistics
import sys
import tempfile

import torch
import torch.distributed as dist

from sparsetrain.bench.table import render
from sparsetrain.collective.torch_dist import TorchTransport
from sparsetrain.collective.world import World
from sparsetrain.config.load import load_job
from sparsetrain.engine.state import RunState, build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.engine.update import Updated
from sparsetrain.gradient.handover import newcomer, reconcile
from sparsetrain.worker.main import seed_all

JOB = (
    "train.steps={steps} exchange.every=5 exchange.density=0.05 masks.method=rigl masks.every=10 train.batch_size=2 "
    "model.layers=1 model.width=64 train.evaluate_every={steps} log.every={steps} log.wandb.mode=disabled "
    "checkpoint.every=0 seed={seed}"
)
KINDS = ("residual", "moments", "both")


class Forgetful(Trainer):
    """Loses what `kind` says of rank `who` after the exchange of step `at`."""

    kind = ""
    who = at = -1

    def stepped(self, updated: Updated) -> None:
        """See Trainer."""
        super().stepped(updated)
        if self.state.step == self.at and updated.exchanged:
            forget(self.state, self.kind, self.who)


def forget(state: RunState, kind: str, who: int) -> None:
    """Lose what `kind` says of rank `who`. Collective."""
    world, exchange = state.world, state.exchange
    if kind in ("residual", "both"):
        if world.rank == who:
            exchange.load_state(newcomer(exchange, exchange.state()))
        reconcile(exchange, world)
    if kind in ("moments", "both"):
        held = state.engine.state()
        for name, tensor in held.items():
            taken = tensor.clone()
            world.transport.broadcast(taken, "control", (who + 1) % world.size)
            if world.rank == who:
                held[name] = taken
        state.engine.load_state(held, False)


def once(steps: int, seed: int, own: list[str], kind: str = "", who: int = -1, at: int = -1) -> float:
    """Return the last evaluation's loss. Collective."""
    job = load_job("text_gpt", (*JOB.format(steps=steps, seed=seed).split(), *own))
    seed_all(seed)
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), transport=TorchTransport())
    with tempfile.TemporaryDirectory() as there:
        folder = pathlib.Path(world.transport.gather_bytes(there.encode())[0].decode())
        trainer = Forgetful(build(job, world), folder, log=lambda line: None, show=lambda row: None)
        trainer.kind, trainer.who, trainer.at = kind, who, at
        loss = float(trainer.run()["eval/loss"])
        trainer.close("finished")
        world.transport.barrier()
    return loss


def main(steps: int, at: list[int], own: list[str]) -> None:
    """Run and print. Every rank calls this."""
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=10))
    torch.set_num_threads(1)
    rows: list[dict[str, str | float]] = []
    calm = [once(steps, seed, own) for seed in range(5)]
    rows.append({"lost": "nothing, seeds 0 to 4", "after step": "-", **_losses(calm)})
    for kind in KINDS:
        for step in at:
            found = [once(steps, 0, own, kind, who, step) for who in range(dist.get_world_size())]
            rows.append({"lost": kind, "after step": str(step), **_losses(found)})
    if dist.get_rank() == 0:
        print(f"{steps} steps; undisturbed with seed 0: {calm[0]:.4f}")
        print(render(rows, list(rows[0])))
    dist.destroy_process_group()


def _losses(found: list[float]) -> dict[str, float]:
    return {"least": min(found), "median": statistics.median(found), "most": max(found)}


if __name__ == "__main__":
    said = sys.argv[2:]
    settings = [each for each in said if "=" in each]
    main(int(sys.argv[1]), [int(each) for each in said if "=" not in each] or [20, 40, 60], settings)
