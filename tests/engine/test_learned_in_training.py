"""Methods that learn their budget inside the loop: on two ranks, in every regime, and what a checkpoint is worth."""

import itertools
import pathlib

import pytest
import torch
from ranks import gloo_ranks
from safetensors.torch import load_file
from small import job, run_and_die

from sparsetrain.collective.world import World
from sparsetrain.engine import checkpoint
from sparsetrain.engine.preview import preview
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import Trainer, train

METHODS = {"str": "masks.method={name: str, initial: -4.0}", "l0": "masks.method={name: l0, rate: 100.0}"}
REGIMES = {
    "dense": ("exchange.regime=dense",),
    "packed": ("exchange.regime=packed", "exchange.values=fp32"),
    "sparse": ("exchange.density=0.1", "exchange.bucket_elements=1000"),
    "local steps": ("exchange.every=2", "exchange.density=0.2", "optimizer=adamw"),
    "accumulated": ("exchange.regime=packed", "train.accumulate=2", "train.precision=bf16"),
}


def quiet(line: str) -> None:
    return


def resumed(world: World, method: str, regime: str) -> tuple[str, str, float]:
    """Train a tiny job, then once more from a checkpoint in the midst; return what came of both."""
    settings = (METHODS[method], *REGIMES[regime], "optimizer.learning_rate=0.1", "checkpoint.every=6")
    folder = pathlib.Path(f"{method}-{regime}")
    straight = train(job(*settings), world, folder / "a", quiet)
    trainer = Trainer(build(job(*settings), world), folder / "b", quiet)
    run_and_die(trainer, 7)
    trainer.recorder.close("failed")
    trainer.state.exchange.close()
    again = Trainer(build(job(*settings), world), folder / "b", quiet)
    found = again.run()
    again.state.exchange.close()
    return straight["weights_digest"], found["weights_digest"], again.state.masks.masks.sparsity()


def streamed(world: World, method: str, overlap: bool) -> str:
    settings = (METHODS[method], "exchange.density=0.2", f"exchange.overlap={overlap}", "exchange.values=fp32")
    return train(job(*settings), world, pathlib.Path(f"{method}-{overlap}"), quiet)["weights_digest"]


def everything(world: World) -> tuple[dict, dict]:
    """Return what all methods and regimes come to, in one start of the ranks."""
    cases = itertools.product(METHODS, REGIMES)
    ways = {method: [streamed(world, method, overlap) for overlap in (True, False)] for method in METHODS}
    return {case: resumed(world, *case) for case in cases}, ways


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_ranks_learn_the_same_in_every_regime_and_resume_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (one, ways), (other, _) = gloo_ranks(2, everything, seconds=200)
    assert one == other
    for case, (straight, again, sparsity) in one.items():
        assert straight == again and sparsity == pytest.approx(0.8, abs=1e-3), case
    for early, late in ways.values():
        assert early == late  # buckets that leave while backward runs hold whole gradients


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_draws_nothing_and_leaves_all_as_it_was(method):
    trainer = Trainer(build(job(METHODS[method]), World()), pathlib.Path("unused"), quiet)
    trainer.train_step()
    before = trainer.state.weights_digest()
    assert trainer._evaluate() == trainer._evaluate() and trainer.state.weights_digest() == before


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_leaves_the_weights_that_it_computes_with(method, tmp_path):
    found = train(job(METHODS[method]), World(), tmp_path, quiet)
    newest = checkpoint.complete(tmp_path / "checkpoints")[-1]
    saved = load_file(newest / "model.safetensors")
    plain = job("masks=null", f"train.init_from={newest / 'model.safetensors'}")
    state = build(plain, World())
    masked = {name: saved[name] for name in build(job(METHODS[method]), World()).masks.parameters}
    total = sum(weight.numel() for weight in masked.values())
    assert sum(int((weight != 0).sum()) for weight in masked.values()) <= round(0.2 * total)
    assert Trainer(state, tmp_path / "plain", quiet)._evaluate()["eval/loss"] == found["eval/loss"]


@pytest.mark.parametrize("method", METHODS)
def test_a_preview_shows_all_gradients_travelling_until_the_last_update(method):
    rows = preview(job(METHODS[method], "exchange.regime=packed"))
    updates = [int(row["train/step"]) for row in rows if "mask/update" in row]
    assert updates == [4, 8] and rows[3]["mask/sparsity"] == 0.0 < rows[4]["mask/sparsity"] < 0.8
    sent = [row["grad/sent"] for row in rows]
    assert sent[:8] == [1.0] * 8 and sent[8:] == pytest.approx([0.2] * 4)


def test_l0_learns_its_gates_faster_with_sgd_where_the_job_does_not_say():
    rates = [job(f"optimizer={name}", "masks.method=l0").masks.method.config.rate for name in ("sgd", "adamw")]
    said = job("masks.method={name: l0, rate: 3.0}").masks.method.config.rate
    assert rates[0] > rates[1] and said == 3.0


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_the_optimizer_follow_one_schedule_and_learned_parameters_do_not_decay(method):
    trainer = Trainer(build(job(METHODS[method], "optimizer.weight_decay=0.1"), World()), pathlib.Path("unused"), quiet)
    trainer.train_step()
    weights, _, learned = trainer.state.optimizer.param_groups
    assert learned["lr"] == pytest.approx(weights["lr"] * trainer.state.masks.method.config.rate)
    assert learned["weight_decay"] == 0.0 and torch.is_tensor(learned["params"][0])
