import functools
import json
import pathlib

import pytest
import torch
from ranks import gloo_ranks
from safetensors.torch import load_file, save_file
from small import job, run_and_die

from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.engine import checkpoint
from sparsetrain.engine.local_store import LocalStore
from sparsetrain.engine.pieces import Saved, capture, restore
from sparsetrain.engine.saver import Saver
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import NotFinite, Trainer, train

EVERY_STEP = ("optimizer.momentum=0.9", "exchange.warmup=0.3")
LOCAL = ("optimizer=adamw", "exchange.every=2", "exchange.outer.momentum=0.5", "exchange.density=0.2")

LOWRANK = ("exchange.regime=lowrank", "exchange.rank=2", "exchange.residual=bf16")


def quiet(line: str) -> None:
    return


def run(world: World, folder: str, overrides: tuple[str, ...]) -> dict:
    """Train and return what must be equal between runs that are the same."""
    result = train(job(*overrides), world, pathlib.Path(folder), quiet)
    return {key: result[key] for key in ("steps", "weights_digest", "eval/loss", "sent_bytes")}


def state_of(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """Everything in the newest checkpoint, by file and name."""
    newest = checkpoint.complete(folder / "checkpoints")[-1]
    return {f"{f.name}/{k}": t for f in sorted(newest.glob("*.safetensors")) for k, t in load_file(f).items()}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("overrides", "stop"),
    [
        *((form, 4) for form in (EVERY_STEP, LOCAL, LOWRANK)),
        *(pytest.param(form, stop, marks=pytest.mark.slow) for form in (EVERY_STEP, LOCAL) for stop in (2, 6)),
    ],
    ids=str,
)
def test_straight_is_killed_and_resumed_bit_for_bit(tmp_path, overrides, stop):
    """Masks change after steps 4 and 8: the stops lie before, at, and after an update."""
    overrides = (*overrides, "checkpoint.every=2", "checkpoint.keep=9")
    straight = gloo_ranks(2, functools.partial(run, folder=str(tmp_path / "a"), overrides=overrides))
    interrupted = functools.partial(killed_at, folder=str(tmp_path / "b"), overrides=overrides, stop=stop)
    assert gloo_ranks(2, interrupted) == [stop, stop]
    assert [f.name for f in checkpoint.complete(tmp_path / "b/checkpoints")][-1] == f"step_{stop:08d}"
    resumed = gloo_ranks(2, functools.partial(run, folder=str(tmp_path / "b"), overrides=overrides))
    for rank in range(2):
        assert resumed[rank]["weights_digest"] == straight[rank]["weights_digest"]
        assert resumed[rank]["eval/loss"] == straight[rank]["eval/loss"]
    one, two = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, two[key]), key
    rows = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    steps = [row["train/step"] for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def killed_at(world: World, folder: str, overrides: tuple[str, ...], stop: int) -> int:
    """Train, and die in the middle of step `stop` + 1."""
    trainer = Trainer(build(job(*overrides), world), pathlib.Path(folder), quiet)
    run_and_die(trainer, stop)
    return trainer.state.step


def masks_after(world: World, batch: int) -> tuple[str, list[str]]:
    """Return the digest of weights and masks after each step of a run whose gradients are whole numbers."""
    options = (
        "exchange.regime=dense",
        "exchange.values=fp32",
        "exchange.overlap=false",  # the gradients are replaced after backward
        f"train.batch_size={batch}",
        "train.clip=0",
        "optimizer.learning_rate=0.125",
    )
    trainer = Trainer(build(job(*options), world), pathlib.Path("unused"), quiet)
    digests = []
    original = trainer._forward_backward

    def whole() -> None:
        original()
        for number, parameter in enumerate(trainer.state.parameters.values()):
            # Rank r's share: the mean over ranks is the same whole number for every number of ranks.
            base = torch.arange(parameter.numel()).remainder(17 + number).view(parameter.shape).float() - 8
            parameter.grad = base + (world.rank - (world.size - 1) / 2) * 2

    trainer._forward_backward = whole
    for _ in range(9):
        trainer.train_step()
        digests.append(trainer.state.masks.masks.digest().hex())
    return trainer.state.weights_digest(), digests


@pytest.mark.timeout(180)
def test_one_two_and_four_ranks_give_the_same_masks_and_weights():
    alone = masks_after(World(), 4)
    assert len(set(alone[1])) == 3
    for size in (2, 4):
        for found in gloo_ranks(size, functools.partial(masks_after, batch=4 // size)):
            assert found == alone


@pytest.mark.timeout(120)
def test_replicas_that_differ_stop_the_run_and_are_named():
    with pytest.raises(
        AssertionError,
        match=r"ReplicasDiffer: weights of ranks \[1\] differ from rank 0's, first at embed\.weight\[0\]",
    ):
        gloo_ranks(2, differing)


def differing(world: World) -> None:
    state = build(job(), world)
    if world.rank == 1:
        with torch.no_grad():
            next(iter(state.parameters.values())).view(-1)[0] += 1e-7
    Trainer(state, pathlib.Path("unused"), quiet).check_replicas()


def finished(tmp_path: pathlib.Path, *overrides: str) -> pathlib.Path:
    train(job("train.steps=6", "checkpoint.every=2", "checkpoint.keep=9", *overrides), World(), tmp_path, quiet)
    return tmp_path / "checkpoints"


def test_only_complete_checkpoints_count_and_old_ones_go(tmp_path):
    root = finished(tmp_path, "checkpoint.keep=2")
    assert [folder.name for folder in checkpoint.complete(root)] == ["step_00000004", "step_00000006"]
    assert not list(root.glob("*.unfinished"))
    (root / "step_00000006/COMPLETE").unlink()
    assert [folder.name for folder in checkpoint.complete(root)] == ["step_00000004"]


def state_json(**changes):
    def change(folder: pathlib.Path) -> None:
        path = folder / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def tensors(file: str, change):
    def damage(folder: pathlib.Path) -> None:
        path = folder / f"{file}.safetensors"
        save_file({key: change(tensor).contiguous() for key, tensor in load_file(path).items()}, path)

    return damage


def without(file: str, prefix: str):
    def damage(folder: pathlib.Path) -> None:
        path = folder / f"{file}.safetensors"
        kept = load_file(path)
        del kept[min(key for key in kept if key.startswith(prefix))]
        save_file(kept, path)

    return damage


def flip(folder: pathlib.Path) -> None:
    path = folder / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = [
    (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04nonsense"), "model.safetensors"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    (lambda f: (f / "state.json").write_text("[1]"), "state.json"),
    (lambda f: (f / "residual.rank00000.safetensors").write_bytes(b""), "residual.rank00000"),
    (lambda f: (f / "COMPLETE").write_text("[" * 100_000), "state.json"),
    (lambda f: (f / "COMPLETE").write_text('{"blake2b": 3}'), "state.json"),
    (flip, "optimizer.safetensors: is not the file that was saved"),
]
# What somebody else may have written: every digest is right.
FOREIGN = [
    (state_json(format=99), "checkpoint format 99"),
    (state_json(step=-1), "step: "),
    (state_json(step=1.5), "step: "),
    (state_json(step="6"), "step: "),
    (state_json(step=10**6), "in the folder of another step"),
    (state_json(exchanges=None), "exchanges: "),
    (state_json(mask_epoch=1e30), "mask_epoch: "),
    (state_json(world_size=10**30), "world_size: "),
    (state_json(world_size=0), "world_size: "),
    (state_json(wall_s="now"), "wall_s: "),
    (state_json(sent_bytes={"gradient": "many"}), "sent_bytes.gradient: "),
    (lambda f: (f / "state.json").write_text("[" * 100_000), "state.json"),
    (lambda f: (f / "masks.safetensors").write_bytes((f / "model.safetensors").read_bytes()), "mask"),
    (tensors("optimizer", lambda t: t.double()), "optimizer state momentum_buffer/"),
    (tensors("optimizer", lambda t: t.reshape(-1)[:1]), "optimizer state momentum_buffer/"),
    (tensors("residual.rank00000", lambda t: t[:3]), "residual of"),
    (tensors("residual.rank00000", lambda t: t / 0 if t.is_floating_point() else t), "is not finite float32"),
    (tensors("residual.rank00000", lambda t: t.double() if t.is_floating_point() else t), "is not finite float32"),
    (tensors("optimizer", lambda t: t * float("nan")), "optimizer state momentum_buffer/"),
    (without("residual.rank00000", "residual/"), "has no tensor residual/"),
    (without("optimizer", "momentum_buffer/"), "is missing"),
    (tensors("model", lambda t: t + 1), "weights do not have the digest"),
    (tensors("masks", lambda t: t.roll(1)), "which its mask leaves out"),
]


@pytest.mark.parametrize(
    ("damage", "says", "sealed"), [(*case, False) for case in DAMAGE] + [(*case, True) for case in FOREIGN]
)
def test_a_damaged_checkpoint_is_skipped_with_a_word_and_an_older_one_taken(tmp_path, damage, says, sealed):
    # What a mask leaves out is nowhere where weights are the values of their masks.
    how = ("optimizer.momentum=0.9", *(("compute=masked",) if "leaves out" in says else ()))
    root = finished(tmp_path, *how)
    newest = root / "step_00000006"
    damage(newest)
    if sealed:
        digests = {f.name: checkpoint.digest(f) for f in newest.iterdir() if f.name != "COMPLETE"}
        (newest / "COMPLETE").write_text(json.dumps({"blake2b": digests}))
    said: list[str] = []
    options = ("train.steps=6", "checkpoint.keep=9", "checkpoint.every=2", *how)
    result = train(job(*options), World(), tmp_path, said.append)
    assert result["steps"] == 6
    assert any("skipped" in line and says in line for line in said), said
    assert "resumed from step_00000004" in said


def test_weights_that_do_not_fit_are_named(tmp_path):
    root = finished(tmp_path)
    other = build(job("model.width=16"), World())
    with pytest.raises(checkpoint.CheckpointError, match=r"contract\.bias is \(32,\), the model's is \(16,\)"):
        restore(other, Saved(root / "step_00000006"))


@pytest.mark.timeout(120)
def test_another_number_of_ranks_keeps_the_mean_residual(tmp_path):
    gloo_ranks(2, functools.partial(run, folder=str(tmp_path), overrides=("train.steps=6",)))
    newest = checkpoint.complete(tmp_path / "checkpoints")[-1]
    old = [load_file(newest / f"residual.rank{rank:05d}.safetensors") for rank in range(2)]
    alone = build(job("train.steps=6"), World())
    restore(alone, Saved(newest))
    for name, residual in alone.exchange.state().items():
        mean = (old[0][name] + old[1][name]) / 2
        assert torch.equal(residual, mean)


def test_pretrained_weights_are_taken_by_name(tmp_path):
    root = finished(tmp_path, "compute=masked")
    path = root / "step_00000006/model.safetensors"
    state = build(job(f"train.init_from={path}", "masks=null"), World())
    for name, tensor in load_file(path).items():
        assert torch.equal(dict(state.model.named_parameters())[name], tensor)


def test_pretrained_weights_may_be_the_values_of_their_masks_alone(tmp_path):
    roots = [finished(tmp_path / way, f"compute={way}") for way in ("masked", "sparse")]
    paths = [root / "step_00000006/model.safetensors" for root in roots]
    assert any(tensor.ndim == 1 for name, tensor in load_file(paths[1]).items() if "contract.weight" in name)
    models = [build(job(f"train.init_from={path}", "masks=null"), World()).model for path in paths]
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-5), name
    masks = paths[1].parent / "masks.safetensors"
    save_file({name: bits[:-1].clone() for name, bits in load_file(masks).items()}, masks)
    with pytest.raises(JobError, match=r"^train\.init_from: .*masks.safetensors: mask of "):
        build(job(f"train.init_from={paths[1]}", "masks=null"), World())


def test_saving_leaves_no_trace_of_an_unfinished_checkpoint(tmp_path):
    state = build(job(), World())
    for left in ("step_00000002.unfinished", "step_00000009.unfinished"):
        (tmp_path / left).mkdir()
    saver = Saver(LocalStore(tmp_path), job("checkpoint.keep=1"), World(), state.update.assent, quiet)
    saver.save(capture(state), 5)
    saver.finish()
    # Of a later step a user might want something, until there is a newer one.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000005", "step_00000009.unfinished"]


def test_accumulation_equals_a_larger_batch(tmp_path):
    """Two micro-batches of 2 hold the samples of one batch of 4, so the first mean gradients agree to rounding."""
    found = []
    for options in (("train.batch_size=4",), ("train.batch_size=2", "train.accumulate=2")):
        trainer = Trainer(build(job(*options, "masks=null"), World()), tmp_path, quiet)
        trainer._forward_backward()
        found.append({name: p.grad.clone() for name, p in trainer.state.parameters.items()})
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-6), name


def test_bf16_autocast_trains(tmp_path):
    result = train(job("train.precision=bf16"), World(), tmp_path, quiet)
    assert result["eval/loss"] < 5.5


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_that_stay_not_finite_end_the_run(tmp_path, every):
    source = tmp_path / "model.safetensors"
    weights = {name: p.detach() for name, p in build(job("masks=null"), World()).parameters.items()}
    save_file({**weights, "embed.weight": torch.full_like(weights["embed.weight"], float("nan"))}, source)
    options = ("train.skip_limit=3", f"exchange.every={every}", f"train.init_from={source}", "masks=null")
    with pytest.raises(NotFinite, match="step 3: no finite gradient for 3 steps in a row"):
        train(job(*options), World(), tmp_path, quiet)
