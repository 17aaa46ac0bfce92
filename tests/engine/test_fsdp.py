"""Torch's FSDP2 under our loop: its own weights where everything is sent, and masks and residuals that hold."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from typing import Any

import pytest
import torch
from engine_runs import differing, quiet, trained
from ranks import gloo_ranks
from small import job, run_and_die

from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.data.sampler import Sampler
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer
from sparsetrain.models.gpt import GPT

needs = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
STEPS = 5
# Everything is sent as it is, so that nothing but the engine makes a difference.
ALL = ("masks=null", "exchange.density=1.0", "exchange.values=fp32", "exchange.dense_below=0", f"train.steps={STEPS}")
FORMS = [
    ("train.precision=fp32", "train.clip=0", "optimizer={name: adamw}"),
    ("train.precision=fp32", "train.clip=0", "train.accumulate=2", "optimizer={name: adamw}"),
    ("train.precision=bf16", "train.clip=0", "optimizer={name: adamw}"),
]


def stock(world: World, what: Job) -> dict[str, torch.Tensor]:
    """Return the weights that FSDP2 alone comes to, with its own reduction."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.manual_seed(what.seed)
    model: Any = what.model.build()
    optimizer, train, data = what.optimizer.build().optimizer(model), what.train, what.data.build()
    groups = [
        [name for name, p in model.named_parameters() for q in g["params"] if p is q] for g in optimizer.param_groups
    ]
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    sharded = dict(model.named_parameters())
    for group, names in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [sharded[name] for name in names]
    peak = [group["lr"] for group in optimizer.param_groups]
    sampler = Sampler(
        data.train_size, train.batch_size * train.accumulate * world.size, world.rank, world.size, what.seed
    )
    position = 0
    for step in range(train.steps):
        for group, rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * factor_at(step, train.steps, train.warmup, train.final_learning_rate)
        optimizer.zero_grad()
        parts = sampler.indices(position).tensor_split(train.accumulate)
        for number, part in enumerate(parts):
            model.set_requires_gradient_sync(number + 1 == len(parts))
            (model.loss(data.train_batch(part)) / len(parts)).backward()
        optimizer.step()
        position = sampler.after(position)
    return {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}


def both(world: World, folder: str) -> list[str]:
    return differing(world, folder, {str(form): job("engine=fsdp", *ALL, *form) for form in FORMS}, stock)


@pytest.mark.timeout(200)
def test_where_everything_is_sent_the_weights_are_those_of_fsdp_alone(tmp_path):
    assert gloo_ranks(2, functools.partial(both, folder=str(tmp_path)), seconds=150) == [[], []]


def outside_of(state: Any) -> list[torch.Tensor]:
    """Return weights and this rank's moments of the masked tensors outside their masks."""
    found, engine = [], state.engine
    with engine.whole():
        for name, mask in state.masks.masks.masks.items():
            found.append(state.parameters[name].detach()[~mask])
            moments = engine.optimizer.state.get(engine.rows[name], {}).values()
            found += [each[~engine._own(mask)] for each in moments if each is not None and each.ndim]
    return found


def everything(world: World, folder: str, options: tuple[str, ...]) -> list[dict[str, Any]]:
    what = job("train.steps=10", "checkpoint.every=2", "engine=fsdp", *options)
    place = pathlib.Path(folder)
    whole = trained(world, place / "straight", what, outside_of)
    trained(world, place / "killed", what, outside_of, stop=6)
    plain = job("train.steps=10", *options)
    return [whole, trained(world, place / "killed", what, outside_of), trained_plainly(world, place / "plain", plain)]


def trained_plainly(world: World, folder: pathlib.Path, what: Job) -> dict[str, Any]:
    trainer = Trainer(build(what, world), folder, quiet)
    result = trainer.run()
    trainer.close("finished")
    return result


@pytest.mark.timeout(200)
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_hold_and_a_killed_run_goes_on_bit_for_bit(tmp_path, precision, size):
    optimizer = "optimizer={name: adamw}" if precision == "bf16" else "optimizer.momentum=0.9"
    options = (f"train.precision={precision}", optimizer, "train.clip=0.5")
    for name in ("straight", "killed", "plain"):
        (tmp_path / name).mkdir()
    ranks = gloo_ranks(size, functools.partial(everything, folder=str(tmp_path), options=options), seconds=150)
    straight, _, plain = ranks[0]
    assert straight["epoch"] > 1 and straight["outside"]
    for whole, again, _ in ranks:
        assert "resumed from step_00000006" in "".join(again["said"])
        for found in (whole, again):
            assert found["outside"] == [0.0] * len(found["outside"])
            assert found["weights_digest"] == straight["weights_digest"]
            assert found["eval/loss"] == straight["eval/loss"]
    if precision == "fp32":  # bf16 is autocast there, and low weights here
        assert straight["eval/loss"] == pytest.approx(plain["eval/loss"], abs=1e-5)


def damaged(world: World, folder: str, engine: str) -> list[str]:
    """Cut rank 1's newest part short and go on; what was said."""
    what, place = job("train.steps=8", "checkpoint.every=2", engine, "optimizer.momentum=0.9"), pathlib.Path(folder)
    run_and_die(Trainer(build(what, world), place, quiet), 4)
    world.transport.barrier()
    if world.rank == 0:
        part = place / "checkpoints/step_00000004/optimizer.rank00001.safetensors"
        part.write_bytes(part.read_bytes()[:100])
    world.transport.barrier()
    said: list[str] = []
    trainer = Trainer(build(what, world), place, said.append)
    trainer.run()
    trainer.close("finished")
    return said


@pytest.mark.timeout(200)
@pytest.mark.parametrize("engine", ["engine=fsdp", pytest.param("engine={name: deepspeed, stage: 3}", marks=needs)])
def test_a_part_that_is_damaged_on_one_rank_is_passed_over_by_all(tmp_path, engine):
    body = functools.partial(damaged, folder=str(tmp_path), engine=engine)
    for said in gloo_ranks(2, body, seconds=150):
        assert any(line.startswith("checkpoint step_00000004 skipped, rank 1: ") for line in said)
        assert "resumed from step_00000002" in said


class Frozen(GPT):
    """Has weights that are not trained."""

    def __init__(self, config: GPT.Config) -> None:
        super().__init__(config)
        self.position.weight.requires_grad_(False)


class Double(GPT):
    """Has a weight of another type."""

    def __init__(self, config: GPT.Config) -> None:
        super().__init__(config)
        self.norm.double()


def frozen(world: World, folder: str) -> list[bool]:
    what = job("engine=fsdp", "train.steps=4", "model.name=test_fsdp:Frozen", "masks.every=2")
    trainer = Trainer(build(what, world), pathlib.Path(folder), quiet)
    engine = trainer.state.engine
    with engine.whole():
        before = {name: tensor.detach().clone() for name, tensor in engine.tensors().items()}
    trainer.run()
    with engine.whole():
        same = [torch.equal(before[name], tensor) for name, tensor in engine.tensors().items()]
        still = [alike for name, alike in zip(before, same, strict=True) if name.startswith("position")]
    trainer.close("finished")
    assert not all(same)
    with pytest.raises(JobError, match="is float64 with engine fsdp"):
        build(job("engine=fsdp", "model.name=test_fsdp:Double", "masks=null"), world)
    return still


@pytest.mark.timeout(200)
def test_weights_that_are_not_trained_stay_and_other_types_are_refused(tmp_path):
    assert gloo_ranks(2, functools.partial(frozen, folder=str(tmp_path)), seconds=100) == [[True], [True]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("exchange.every=2",), "exchange.every: 2 with engine fsdp"),
        (("masks.method=lottery",), "masks.method: lottery with this engine fsdp: it changes"),
        (("masks.method=sr_ste",), "masks.method: sr_ste with this engine fsdp: it looks"),
        (("engine.stage=1",), "engine.stage: unknown key"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(options, says):
    with pytest.raises(JobError) as error:
        job("engine=fsdp", *options)
    assert str(error.value).startswith(says)


def test_a_single_rank_has_nobody_to_spread_over():
    with pytest.raises(JobError, match="1 with engine fsdp"):
        build(job("engine=fsdp"), World())
