"""DeepSpeed's engine under our loop: its own weights where everything is sent, and masks and residuals that hold."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import pathlib
from typing import Any

import pytest
import torch
from engine_runs import differing, trained
from ranks import gloo_ranks
from small import job

from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import parse, to_tree
from sparsetrain.data.sampler import Sampler
from sparsetrain.engine import deepspeed_config
from sparsetrain.engine.deepspeed import Loss
from sparsetrain.engine.deepspeed_stand_in import load
from sparsetrain.engine.learning_rate import factor_at
from sparsetrain.engine.state import build

installed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (sparsetrain[deepspeed])"
)
STAGES = [0, 2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 3))]
STEPS = 5
# Everything is sent as it is, so that nothing but the engine makes a difference.
ALL = ("masks=null", "exchange.density=1.0", "exchange.values=fp32", "exchange.dense_below=0", f"train.steps={STEPS}")
FORMS = [
    ("train.precision=fp32", "train.clip=0", "optimizer={name: adamw}"),
    ("train.precision=fp32", "train.clip=0.1", "train.accumulate=2", "optimizer.momentum=0.9"),
    ("train.precision=bf16", "train.clip=0.1", "train.accumulate=2", "optimizer={name: adamw}"),
]


def of(stage: int, *options: str) -> Job:
    return job("engine=deepspeed", f"engine.stage={stage}", *options)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def stock(world: World, what: Job) -> dict[str, torch.Tensor]:
    """Return the weights that DeepSpeed alone comes to, with its own reduction, buckets and accumulation."""
    library = load(world)
    library.comm.comm.cdb = None
    library.init_distributed(auto_mpi_discovery=False, verbose=False)
    torch.manual_seed(what.seed)
    model: Any = what.model.build()
    optimizer = what.optimizer.build().optimizer(model)
    stage, train_, data = what.engine.config.stage, what.train, what.data.build()
    told = deepspeed_config.merged(what, stage, {}, world.size, 1)
    told["gradient_accumulation_steps"] = train_.accumulate
    told["zero_optimization"] = {"stage": stage, "reduce_bucket_size": 5000}
    engine = library.initialize(model=Loss(model), optimizer=optimizer, config=told)[0]
    peak = [group["lr"] for group in optimizer.param_groups]
    batch = train_.batch_size * train_.accumulate * world.size
    sampler, position = Sampler(data.train_size, batch, world.rank, world.size, what.seed), 0
    # By itself, stages 2 and 3 reduce after every micro-batch, which rounds in another order.
    together = stage > 1 and train_.accumulate > 1
    for step in range(train_.steps):
        for group, rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * factor_at(step, train_.steps, train_.warmup, train_.final_learning_rate)
        with engine.coalesce_grad_reduction() if together else contextlib.nullcontext():
            for part in sampler.indices(position).tensor_split(train_.accumulate):
                engine.backward(engine(*data.train_batch(part)))
                if not together:
                    engine.step()
        for _ in range(train_.accumulate if together else 0):
            engine.step()
        position = sampler.after(position)
    with library.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        found = weights_of(model)
    engine.destroy()
    return found


def both(world: World, folder: str, stage: int) -> list[str]:
    return differing(world, folder, {str(form): of(stage, *ALL, *form) for form in FORMS}, stock)


@installed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_where_everything_is_sent_the_weights_are_those_of_deepspeed_alone(tmp_path, stage):
    body = functools.partial(both, folder=str(tmp_path), stage=stage)
    assert gloo_ranks(2, body, seconds=200) == [[], []]


def outside_of(state: Any) -> list[torch.Tensor]:
    """Return weights, fp32 weights and moments of the masked tensors outside their masks."""
    found, engine = [], state.engine
    with engine.whole():
        for name, mask in state.masks.masks.masks.items():
            parameter = state.parameters[name]
            found.append(parameter.detach()[~mask])
            if engine.stage:
                from deepspeed import utils

                found.append(utils.safe_get_full_fp32_param(parameter)[~mask])
                found += [utils.safe_get_full_optimizer_state(parameter, f)[~mask] for f in engine._fields()]
            elif engine.shards:
                master = engine._masters()[parameter]
                found.append(master.detach()[~mask])
                found += [v[~mask] for v in engine.optimizer.state[master].values() if v.shape == master.shape]
    return found


def straight_and_killed(world: World, folder: str, options: tuple[str, ...]) -> list[dict[str, Any]]:
    what = job("train.steps=10", "checkpoint.every=2", *options)
    whole = trained(world, pathlib.Path(folder) / "straight", what, outside_of)
    trained(world, pathlib.Path(folder) / "killed", what, outside_of, stop=6)
    return [whole, trained(world, pathlib.Path(folder) / "killed", what, outside_of)]


@installed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_masks_hold_everywhere_and_a_killed_run_goes_on_bit_for_bit(tmp_path, stage, precision):
    optimizer = "optimizer={name: adamw}" if precision == "bf16" else "optimizer.momentum=0.9"
    options = (f"engine={{name: deepspeed, stage: {stage}}}", f"train.precision={precision}", optimizer)
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    body = functools.partial(straight_and_killed, folder=str(tmp_path), options=options)
    ranks = gloo_ranks(2, body, seconds=200)
    straight = ranks[0][0]
    assert straight["epoch"] > 1 and straight["outside"]
    for _, again in ranks:
        assert again["said"] and "resumed from step_00000006" in "".join(again["said"])
    for found in (each for rank in ranks for each in rank):
        assert found["outside"] == [0.0] * len(found["outside"])
        assert found["weights_digest"] == straight["weights_digest"]
        assert found["eval/loss"] == straight["eval/loss"]


def moved(world: World) -> str:
    """Build the engine on a DeepSpeed that reduces while backward runs."""
    library = load(world)
    library.DeepSpeedEngine.coalesce_grad_reduction = lambda self: contextlib.nullcontext()
    try:
        build(of(2), world)
    except JobError as error:
        return str(error)
    return "nothing was noticed"


@installed
def test_a_deepspeed_that_reduces_in_another_way_is_refused():
    for said in gloo_ranks(2, moved):
        assert said.startswith("engine: deepspeed ") and "is not what this engine knows: gradients are changed" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("exchange.every=2",), "exchange.every: 2 with engine deepspeed"),
        (("cluster.workers={min: 1, max: 2}",), "cluster.workers: min and max with engine deepspeed"),
        (("cluster.transport=mpi",), "cluster.transport: mpi with engine deepspeed"),
        (("masks.method=snip",), "masks.method: snip with this engine deepspeed: it needs backward passes of its own"),
        (
            ("masks.method=lottery", "engine.stage=1"),
            "masks.method: lottery with this engine deepspeed: it changes",
        ),
        (
            ("masks.method=topkast", "engine.stage=3"),
            "masks.method: topkast with this engine deepspeed: it changes",
        ),
        (
            ("masks.method=sr_ste", "engine.stage=3"),
            "masks.method: sr_ste with this engine deepspeed: it looks",
        ),
        (("masks.regulariser=l1", "engine.stage=3"), "masks.regulariser: looks at whole weights"),
        (("engine.stage=4",), "engine.stage: must be 0, 1, 2 or 3"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused(options, says):
    with pytest.raises(JobError) as error:
        job("engine=deepspeed", *options)
    assert str(error.value).startswith(says) and ("allowed: " in str(error.value) or "given" in str(error.value))


def test_what_stage_0_in_fp32_can_do_of_it_is_not():
    for method in ("lottery", "topkast", "sr_ste", "acdc"):
        assert job("engine=deepspeed", f"masks.method={method}").masks is not None


def told(given: dict[str, Any], *options: str) -> dict[str, Any]:
    return deepspeed_config.merged(of(1, *options), 1, given, 2, 100)


def test_a_json_is_merged():
    given = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": 1.0,
        "train_batch_size": 8,
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 1, "overlap_comm": False, "allgather_bucket_size": "auto"},
        "wall_clock_breakdown": True,
    }
    found = told(given, "train.accumulate=2")
    assert found["wall_clock_breakdown"] is True and found["train_micro_batch_size_per_gpu"] == 2
    assert found["gradient_accumulation_steps"] == 1 and "train_batch_size" not in found and "fp16" not in found
    zero = {"stage": 1, "overlap_comm": False, "reduce_scatter": False, "reduce_bucket_size": 100}
    assert found["zero_optimization"] == zero


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"train_batch_size": 4},
            "train_batch_size is 4, but train.batch_size x",
        ),
        (
            {"gradient_cliping": 1.0},
            "gradient_cliping is no key that DeepSpeed reads; did you mean '",
        ),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage is 2, but engine.stage makes it 1"),
        (
            {"zero_optimization": {"offload_optimizer": {}}},
            "zero_optimization.offload_optimizer is not for",
        ),
        ({"zero_optimization": {"reduce_scatter": True}}, "zero_optimization.reduce_scatter is True"),
        ({"zero_optimization": 3}, "zero_optimization must be a mapping (given 3)"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is not for this engine: the job names the optimizer"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, but train.precision makes it False"),
        ({"fp16": {"enabled": True}}, "fp16.enabled: its scaled losses"),
        ({"wandb": {"enabled": True}}, "wandb is not for this engine"),
    ],
)
def test_a_json_that_says_something_else_is_refused(given, says):
    with pytest.raises(JobError) as error:
        told(given, "train.accumulate=2")
    assert str(error.value).startswith("engine.config: ") and says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "engine.config: is no JSON"),
        ("[]", "engine.config: must be a valid dictionary"),
        ("[" * 100_000, "engine.config: is no JSON"),
        (None, "engine.config: is no file"),
        ('{"gradient_cliping": 1}', "engine.config: gradient_cliping is no key that DeepSpeed reads"),
    ],
)
def test_what_is_no_json_is_refused_with_the_job(tmp_path, text, says):
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(JobError) as error:
        of(1, f"engine.config={path}")
    assert str(error.value).startswith(says)


def test_a_job_holds_what_was_in_the_file(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"gradient_clipping": 1.0}')
    what = of(1, f"engine.config={path}")
    path.write_text('{"zero_optimization": {"round_robin_gradients": true}}')
    assert to_tree(what)["engine"]["config"] == {"gradient_clipping": 1.0} and parse(to_tree(what)) == what


def built(world: World, config: str) -> str:
    try:
        build(of(1, f"engine.config={config}"), world).close()
    except JobError as error:
        return str(error)
    return ""


@installed
@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{zero_optimization: {bogus: 1}}", "bogus"),
        pytest.param("{steps_per_print: 0}", "ZeroDivisionError", marks=pytest.mark.slow),
    ],
)
def test_settings_that_deepspeed_itself_does_not_take_are_one_line(config, says):
    for said in gloo_ranks(2, functools.partial(built, config=config)):
        assert said.startswith("engine: deepspeed ") and "with this engine.config is not what" in said
        assert says in said and "\n" not in said


@installed
def test_a_clipping_that_the_json_names_as_well_is_taken():
    assert gloo_ranks(2, functools.partial(built, config="{gradient_clipping: 1.0}")) == ["", ""]
