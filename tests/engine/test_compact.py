"""Masked weights held as the values of their masks: the same training in less memory."""

import contextlib
import functools
import pathlib
import weakref

import pytest
import torch
from ranks import gloo_ranks
from small import job, run_and_die

from sparsetrain.collective.world import World
from sparsetrain.compute.layer import Layer
from sparsetrain.compute.ways.sparse import Sparse
from sparsetrain.engine.compact import CompactEngine, refusal
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer, train

WIDE = ("exchange.dense_below=100", "masks.sparsity=0.9")
JOBS = {
    "every step": ("exchange.regime=dense", "exchange.values=fp32"),
    "sparse exchange": ("exchange.density=0.2",),
    "adamw": ("optimizer={name: adamw, learning_rate: 0.01}", "exchange.regime=packed"),
    "lowrank": ("exchange.regime=lowrank", "exchange.rank=2"),
    "local steps": ("exchange.every=2", "exchange.outer.momentum=0.5", "exchange.density=0.3"),
    "accumulation": ("train.accumulate=2", "exchange.regime=packed"),
    "neurons": ("masks.method=set", "masks.structure=neuron", "masks.sparsity=0.5"),
    "heads": ("masks.method=set", "masks.structure=head", "masks.sparsity=0.5"),
    "rising sparsity": ("masks.method=gmp", "exchange.regime=packed"),
    "at the beginning": ("masks.method=snip", "masks.distribution=global"),
    "sums of gradients": ("masks.method=snfs",),
    "dense phases": ("masks.method=magnitude", "masks.schedule=linear"),
}


def quiet(line: str) -> None:
    return


def result(settings: tuple[str, ...], folder: pathlib.Path, world: World | None = None):
    said: list[str] = []
    found = train(job(*WIDE, *settings), world or World(), folder, said.append)
    return found, said


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("what", "way"),
    [*((what, "sparse") for what in JOBS), ("every step", "auto"), ("neurons", "auto"), ("neurons", "smaller")],
)
def test_a_run_is_that_of_masked_dense_layers(tmp_path, what, way):
    wanted, _ = result(JOBS[what], tmp_path / "masked")
    found, said = result((*JOBS[what], f"compute={way}"), tmp_path / way)
    assert found["eval/loss"] == pytest.approx(wanted["eval/loss"], rel=2e-3)
    assert any(line.startswith("compute: blocks.0.") for line in said)


def test_weights_that_stay_whole_say_why(tmp_path):
    found, said = result(("compute=sparse", "exchange.dense_below=2000"), tmp_path)
    assert found["steps"] == 12
    assert "compute: blocks.0.project.weight: masked; it is small, and travels dense" in said


def held(world: World) -> list[str]:
    """Train over two mask updates, and return what is held of masked weights beside their active values."""
    settings = (
        *WIDE,
        "compute=sparse",
        "optimizer={name: adamw}",
        "exchange.density=0.2",
        "masks.rules={'*qkv*': 0.5}",
    )
    trainer = Trainer(build(job(*settings), world), pathlib.Path("unused"), quiet)
    state, wrong = trainer.state, []
    assert isinstance(state.engine, CompactEngine) and list(state.engine.layers) == list(state.masks.parameters)
    trainer._choose()
    for _ in range(9):
        trainer.train_step()
        residuals = state.exchange.state()
        for name, parameter in state.masks.parameters.items():
            count = int(state.masks.masks.masks[name].sum())
            moments = [state.optimizer.state[parameter][field] for field in ("exp_avg", "exp_avg_sq")]
            for tensor in (parameter, parameter.grad, *moments, residuals[f"residual/{name}"]):
                if tensor.shape != (count,):
                    wrong.append(f"{state.step}: {name} {tuple(tensor.shape)} for {count}")
    assert state.masks.masks.epoch == 2
    trainer.check_replicas()
    trainer.close("finished")
    return wrong


@pytest.mark.timeout(120)
def test_nothing_is_held_of_masked_weights_and_ranks_stay_equal():
    assert gloo_ranks(2, held) == [[], []]


def test_state_follows_the_masks_as_it_does_with_whole_weights(tmp_path):
    """Moments of what stayed stay, grown weights begin with the mean second moment: bit for bit as without compact."""
    settings = (*WIDE, "optimizer={name: adamw, learning_rate: 0.01}", "exchange.regime=dense", "exchange.values=fp32")
    states = {}
    for compute in ("masked", "sparse"):
        trainer = Trainer(build(job(*settings, f"compute={compute}"), World()), tmp_path / compute, quiet)
        trainer._choose()
        for _ in range(3):
            trainer.train_step()
        states[compute] = trainer
    old = states["masked"].state
    new = states["sparse"].state
    masks = old.masks.masks
    with torch.no_grad():  # the same bits before the update
        for name, parameter in old.parameters.items():
            own = new.parameters[name]
            some = masks.masks.get(name) if own.ndim == 1 and parameter.ndim > 1 else None
            own.copy_(parameter if some is None else parameter[some])
            for field, value in old.optimizer.state[parameter].items():
                mine = new.optimizer.state[own][field]
                mine.copy_(value if some is None or not value.ndim else value[some])
    report = None
    for state in (old, new):
        generator = torch.Generator().manual_seed(5)
        gradients = {n: torch.randn(m.shape, generator=generator) for n, m in masks.masks.items()}
        state.masks.observe(4, gradients)
        assert state.masks.piecewise == state.engine.packs == bool(state.engine.compact)
        with contextlib.nullcontext() if state.masks.piecewise else state.engine.whole(change=True):
            report = state.masks.step(4, state.engine.transitions)
            state.engine.follow(report.old, report.new)
    assert report is not None and report.grown > 0
    for name, parameter in old.parameters.items():
        own = new.parameters[name]
        some = new.masks.masks.masks.get(name) if own.ndim == 1 and parameter.ndim > 1 else None
        assert torch.equal(own, parameter if some is None else parameter[some])
        for field, value in old.optimizer.state[parameter].items():
            mine = new.optimizer.state[own][field]
            assert torch.equal(mine, value if some is None or not value.ndim else value[some]), (name, field)


@pytest.mark.parametrize(("first", "then"), [("masked", "sparse"), ("sparse", "masked")])
def test_a_checkpoint_is_not_of_a_way_to_compute(tmp_path, first, then):
    settings = (*WIDE, "exchange.regime=dense", "exchange.values=fp32", "checkpoint.every=2")
    wanted, _ = result((*settings, f"compute={first}"), tmp_path / "straight")
    trainer = Trainer(build(job(*settings, f"compute={first}"), World()), tmp_path / "b", quiet)
    run_and_die(trainer, 6)
    trainer.recorder.close("failed")
    trainer.state.close()
    found, _ = result((*settings, f"compute={then}"), tmp_path / "b")
    assert found["eval/loss"] == pytest.approx(wanted["eval/loss"], rel=1e-3)


def test_what_was_chosen_is_chosen_again_after_a_checkpoint(tmp_path):
    settings = (*WIDE, "compute=auto", "checkpoint.every=2", "masks.every=100")
    trainer = Trainer(build(job(*settings), World()), tmp_path, quiet)
    trainer.state.engine.chooser.wanted = "sparse"
    run_and_die(trainer, 2)
    trainer.recorder.close("failed")
    trainer.state.close()
    said: list[str] = []
    again = Trainer(build(job(*settings), World()), tmp_path, said.append)
    run_and_die(again, 3)
    assert set(again.state.engine.ways().values()) == {"sparse"}
    assert not any(line.startswith("compute:") for line in said)
    again.recorder.close("failed")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("masks=null",), "masks: none"),
        (("engine=fsdp",), "engine: fsdp"),
        (("masks.regulariser=l1",), "masks.regulariser: l1"),
        (("masks.method=topkast",), "masks.method: topkast gives gradients"),
        (("masks.method=movement",), "masks.method: movement"),
        (("masks.method=str",), "masks.method: str"),
        (("masks.method=lottery",), "masks.method: lottery"),
    ],
)
def test_jobs_that_need_whole_weights_say_so_and_train(tmp_path, settings, why):
    wanted = job(*settings, "compute=auto")
    assert refusal(wanted).startswith(why)
    if "engine=fsdp" not in settings:
        said: list[str] = []
        trainer = Trainer(build(wanted, World()), tmp_path, said.append)
        assert not isinstance(trainer.state.engine, CompactEngine)
        trainer.run()
        assert f"compute: auto is masked here: {refusal(wanted)}" in said
        trainer.close("finished")


def test_a_kept_graph_of_an_earlier_step_does_no_harm(tmp_path):
    trainer = Trainer(build(job(*WIDE, "compute=sparse"), World()), tmp_path, quiet)
    trainer._choose()
    batch = trainer.state.data.train_batch(torch.arange(2))
    kept = [trainer.state.model.loss(batch)]
    for _ in range(5):
        trainer.train_step()
        kept.append(trainer.state.model.loss(batch))
    assert trainer.state.masks.masks.epoch == 1


def test_growth_from_the_largest_gradients_is_growth_from_all(tmp_path):
    """Of the mean gradient only as much is kept as can grow, and the masks are the same."""
    masks = []
    for thin in (True, False):
        settings = (*WIDE, "compute=sparse", "exchange.regime=dense", "exchange.values=fp32", "masks.every=2")
        trainer = Trainer(build(job(*settings), World()), tmp_path / str(thin), quiet)
        source = trainer.state.masks.source
        assert source.rooms is not None
        source.rooms = source.rooms if thin else None
        trainer._choose()
        for _ in range(9):
            trainer.train_step()
            if trainer.state.step == 3:  # between what is observed and the update that it is for
                batch = trainer.state.masks.rank_state()
                trainer.state.masks.load_rank_state(batch)
        masks.append(trainer.state.masks.masks)
    assert masks[0].epoch == 4 and masks[0].digest() == masks[1].digest()


def test_no_layer_is_made_whole_while_others_are(tmp_path, monkeypatch):
    """Two whole weights at a time at most: one that is made, and one that is looked at."""
    settings = (*WIDE, "compute=sparse", "checkpoint.every=2", "masks.every=2", "exchange.regime=dense")
    trainer = Trainer(build(job(*settings), World()), tmp_path, quiet)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = [0]
    whole = Layer.whole

    def counted(layer, values):
        made = whole(layer, values)
        alive.add(made)
        most[0] = max(most[0], len(alive))
        return made

    trainer._choose()
    monkeypatch.setattr(Layer, "whole", counted)
    for _ in range(6):
        trainer.train_step()
    trainer.check_replicas()
    trainer.save()
    trainer.state.weights_digest()
    assert trainer.state.masks.masks.epoch == 3 and 1 <= most[0] <= 2
    trainer.close("finished")


@pytest.mark.parametrize("settings", [("optimizer.name=adamw",), ("exchange.every=2", "exchange.outer.momentum=0.5")])
def test_layers_change_between_whole_and_active_weights_and_back(tmp_path, settings):
    """Moments and momentum go with them."""
    wanted = (*WIDE, *settings, "masks.method=gmp", "exchange.regime=packed", "exchange.values=fp32")
    straight, _ = result(wanted, tmp_path / "masked")
    trainer = Trainer(build(job(*wanted, "compute=auto"), World()), tmp_path / "auto", quiet)
    engine, ways, compact = trainer.state.engine, ["sparse", "masked", "sparse"], []
    choose = engine.choose

    def alternating() -> list[str]:
        engine.chooser.wanted = ways[len(compact)]
        said = choose()
        compact.append(bool(engine.compact))
        return said

    engine.choose = alternating
    found = trainer.run()
    trainer.close("finished")
    assert compact == [True, False, True]
    assert found["eval/loss"] == pytest.approx(straight["eval/loss"], rel=2e-3)


def unlike(world: World, folder: str) -> tuple[bool, str]:
    """Train where only rank 0 has a compiler, through a checkpoint that it has written."""
    if world.rank:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sparse, "refuses", classmethod(lambda *_: "no compiler"))
            return trained(world, folder)
    return trained(world, folder)


def trained(world: World, folder: str) -> tuple[bool, str]:
    settings = (*WIDE, "compute=sparse", "optimizer.name=adamw", "checkpoint.every=2", "masks.agreement_every=2")
    trainer = Trainer(build(job(*settings), world), pathlib.Path(folder), quiet)
    run_and_die(trainer, 6)
    trainer.state.close()
    trainer = Trainer(build(job(*settings), world), pathlib.Path(folder), quiet)
    found = trainer.run()
    compact = bool(trainer.state.engine.compact)
    trainer.close("finished")
    return compact, found["weights_digest"]


@pytest.mark.timeout(120)
def test_ranks_need_not_multiply_alike(tmp_path):
    found = gloo_ranks(2, functools.partial(unlike, folder=str(tmp_path)))
    assert [compact for compact, _ in found] == [True, False] and found[0][1] == found[1][1]


def half_decided(world: World, folder: str) -> list[str]:
    """Rank 1 has not heard what was chosen: all choose again, and nobody waits for ever."""
    trainer = Trainer(build(job(*WIDE, "compute=sparse"), world), pathlib.Path(folder), quiet)
    engine = trainer.state.engine
    if world.rank == 0:
        for layer in engine.layers.values():
            layer.choose("masked")
    trainer._choose()
    trainer.train_step()
    trainer.check_replicas()
    trainer.close("finished")
    return list(engine.ways().values())


def test_all_choose_where_one_rank_has_not_heard(tmp_path):
    found = gloo_ranks(2, functools.partial(half_decided, folder=str(tmp_path)))
    assert found[0] == found[1] and set(found[0]) == {"sparse"}
