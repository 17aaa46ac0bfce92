"""Mask methods inside the loop: what the exchange carries, what a checkpoint holds, and who notices a flipped bit."""

import functools
import pathlib

import pytest
import torch
from ranks import gloo_ranks
from safetensors.torch import load_file
from small import job, run_and_die

from sparsetrain import registry
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.engine import checkpoint
from sparsetrain.engine.compact import refusal
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer, train

# synflow refuses models with layer norms; srigl wants its structure.
METHODS = sorted(set(registry.names("mask_method")) - {"synflow"})
OPTIONS = {
    "srigl": ("masks.structure=fan_in", "masks.distribution=uniform"),
    "snip": ("masks.distribution=global",),
    "grasp": ("masks.distribution=global",),
    "acdc": ("masks.schedule={name: phases, warmup: 2, sparse: 2, dense: 2, finish: 10}",),
    "sr_ste": ("masks.every=1",),
}


def quiet(line: str) -> None:
    return


def options(method: str) -> tuple[str, ...]:
    return (f"masks.method={method}", *OPTIONS.get(method, ()))


def tensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.complete(folder / "checkpoints")[-1]
    return {f"{f.name}/{k}": t for f in sorted(newest.glob("*.safetensors")) for k, t in load_file(f).items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_any_method_resumes_bit_for_bit_one_step_after_an_update(tmp_path, method, optimizer):
    check_resume(tmp_path, (*options(method), f"optimizer.name={optimizer}"))


@pytest.mark.parametrize("method", [name for name in METHODS if not refusal(job(*options(name)))])
def test_any_method_resumes_bit_for_bit_where_only_active_weights_are_held(tmp_path, method):
    check_resume(tmp_path, (*options(method), "optimizer.name=adamw", "compute=sparse"))


@pytest.mark.parametrize("method", ["set", "acdc", "movement"])
@pytest.mark.parametrize("structure", ["neuron", "head"])
def test_coupled_units_resume_bit_for_bit_one_step_after_an_update(tmp_path, structure, method):
    check_resume(tmp_path, (*options(method), f"masks.structure={structure}", "masks.sparsity=0.5"))


def check_resume(tmp_path: pathlib.Path, settings: tuple[str, ...]) -> None:
    """A run that is killed after step 5 and resumed ends as the one that is not."""
    settings = (*settings, "exchange.every=1", "checkpoint.every=1")
    train(job(*settings), World(), tmp_path / "a", quiet)
    trainer = Trainer(build(job(*settings), World()), tmp_path / "b", quiet)
    run_and_die(trainer, 5)
    trainer.recorder.close("failed")
    train(job(*settings), World(), tmp_path / "b", quiet)
    one, two = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, two[key]), key


def kept_inside(world: World, method: str, structure: str, compute: str) -> str:
    """Train on this rank and check after each step that nothing lives outside the update set."""
    settings = (
        *options(method),
        f"masks.structure={structure}",
        f"compute={compute}",
        "masks.sparsity=0.5",
        "exchange.density=0.2",
        "optimizer.momentum=0.9",
    )
    trainer = Trainer(build(job(*settings), world), pathlib.Path("unused"), quiet)
    state = trainer.state
    while state.step < 9:
        trainer.train_step()
        kept = state.exchange.state()
        for name, parameter in state.masks.parameters.items():
            outside = ~state.masks.masks.update(name)
            if f"residual/{name}" in kept:
                assert kept[f"residual/{name}"].numel() == int((~outside).sum())
            else:
                assert torch.all(kept[f"rest/{name}"].view(outside.shape)[outside] == 0)
            assert torch.all(state.engine.weights()[name][outside] == 0)
            momentum = state.optimizer.state[parameter]["momentum_buffer"]
            if name in state.engine.compact:  # the values of the update set alone are there
                assert parameter.shape == momentum.shape == (int((~outside).sum()),)
            else:
                assert torch.all(momentum[outside] == 0)
    assert bool(state.engine.compact) == (compute != "masked")
    return state.weights_digest()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("method", "structure", "compute"),
    [
        *((method, "unstructured", "masked") for method in ("topkast", "rigl", "acdc", "movement")),
        ("set", "neuron", "masked"),
        ("acdc", "head", "masked"),
        ("rigl", "unstructured", "sparse"),
        ("set", "neuron", "sparse"),
    ],
)
def test_residuals_live_in_the_update_set_and_ranks_stay_equal(method, structure, compute):
    found = gloo_ranks(2, functools.partial(kept_inside, method=method, structure=structure, compute=compute))
    assert found[0] == found[1]


def digest(world: World, method: str, structure: str, regime: str) -> str:
    settings = (
        *options(method),
        f"masks.structure={structure}",
        f"exchange.regime={regime}",
        "exchange.values=fp32",
        "optimizer.momentum=0.9",
    )
    return train(job(*settings), world, pathlib.Path(f"{regime}-{method}"), quiet)["weights_digest"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("method", "structure"), [("topkast", "unstructured"), ("rigl", "unstructured"), ("set", "neuron")]
)
def test_packed_gives_the_bits_of_masked_dense_on_two_ranks_across_updates(method, structure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packed, dense = (
        gloo_ranks(2, functools.partial(digest, method=method, structure=structure, regime=regime))
        for regime in ("packed", "dense")
    )
    assert packed == dense


def flipped(world: World, what: str, settings: tuple[str, ...]) -> int:
    """Flip one bit on rank 1 after step 2 and return the step at which the run went on to."""
    trainer = Trainer(build(job("masks.agreement_every=3", *settings), world), pathlib.Path("unused"), quiet)
    trainer._choose()
    while trainer.state.step < 6:
        trainer.train_step()
        if trainer.state.step == 1 and world.rank == 1:
            name, masks = "blocks.0.expand.weight", trainer.state.masks
            if what == "mask":
                mask = masks.masks.masks[name].view(-1)
                mask[mask.int().argmax()] = False
            else:
                held = masks.parameters[name].detach()
                held.view(-1)[0 if held.ndim == 1 else masks.masks.masks[name].view(-1).int().argmax()] += 1.0
    return trainer.state.step


@pytest.mark.timeout(120)
@pytest.mark.parametrize("settings", [("masks.method=topkast",), ("compute=sparse",)])
@pytest.mark.parametrize(("what", "error"), [("mask", "MaskDisagreement"), ("weights", "ReplicasDiffer")])
def test_one_flipped_bit_is_caught_within_an_agreement_interval_and_named(what, error, settings):
    says = rf"{error}: .*ranks \[1\] .*first at blocks\.0\.expand\.weight\[\d+\]: .* on rank 0, .* on rank 1"
    with pytest.raises(AssertionError, match=says):
        gloo_ranks(2, functools.partial(flipped, what=what, settings=settings))


def test_an_update_between_two_exchanges_is_refused():
    with pytest.raises(JobError, match=r"masks\.schedule: an update after step 3, which is not a multiple of exchange"):
        build(job("exchange.every=2", "masks.schedule={name: list, at: [3, 6]}"), World())


@pytest.mark.parametrize(
    ("every", "masks", "first"), [(1, "masks.every=1", 1), (4, "masks.every=4", 4), (2, "masks.every=2", 2)]
)
def test_no_density_warm_up_begins_on_a_mask_update(every, masks, first):
    """The density warm-up begins with the exchange of step `every`; masks may change from the next step on."""
    settings = (f"exchange.every={every}", masks, "train.evaluate_every=4")
    says = rf"exchange\.warmup: begins with the exchange of step {every}, after which masks change \(step {first}\)"
    with pytest.raises(JobError, match=says):
        build(job(*settings, "exchange.warmup=0.5"), World())
    for allowed in ("exchange.warmup=0", f"masks.begin={every + 1}"):
        state = build(job(*settings, "exchange.warmup=0.5", allowed), World())
        assert state.masks.schedule.updates()[0] > every or state.exchange.warmup_steps == 0
        state.exchange.close()


@pytest.mark.parametrize("schedule", registry.names("mask_schedule"))
def test_masks_never_change_before_the_first_step(schedule):
    method = "lottery" if schedule == "rounds" else "acdc"
    own = (f"masks.schedule={schedule}", f"masks.method={method}", "masks.begin=0", "masks.every=1")
    state = build(job(*own), World())
    assert state.masks.schedule.updates()[0] >= 1 and not state.masks.is_update(0)


def test_a_model_that_names_nothing_keeps_its_embeddings_dense():
    from sparsetrain.engine.state import maskable

    net = torch.nn.Module()
    net.embed, net.inner = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4)
    net.head = torch.nn.Linear(4, 5, bias=False)
    net.head.weight = net.embed.weight
    assert maskable(net, dict(net.named_parameters())) == ["inner.weight"]
