"""What lies in place of a checkpoint's files must neither hang a reader nor lead it elsewhere."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import job
from stores import sealed

from sparsetrain import registry
from sparsetrain.collective.world import World
from sparsetrain.engine import checkpoint
from sparsetrain.engine.optimizer_fields import fields_of
from sparsetrain.engine.pieces import Saved, restore
from sparsetrain.engine.saver import save
from sparsetrain.engine.state import build

FILES = ("COMPLETE", "state.json", "model.safetensors", "masks.safetensors", "residual.rank00000.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A fresh run and the folder of its checkpoint."""
    state = build(job("exchange.every=1"), World())
    state.advance(True)
    return state, save(state, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def copy(saved, tmp_path):
    """Return a function that makes another copy of the checkpoint, with one file taken away."""

    def made(without):
        folder = tmp_path / saved[1].name
        folder.mkdir()
        for path in saved[1].iterdir():
            if path.name != without:
                (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return made


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "loop"])
def test_what_is_no_file_is_refused_and_not_waited_for(saved, copy, name, what):
    folder = copy(without=name)
    make = {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda path: os.symlink("/dev/zero", path),
        "loop": lambda path: os.symlink(path, path),
    }
    make[what](folder / name)
    with pytest.raises(checkpoint.CheckpointError, match=folder.name):
        restore(saved[0], Saved(folder))


def test_a_link_to_a_file_is_a_file(saved, copy, tmp_path):
    folder = copy(without="model.safetensors")
    (folder / "model.safetensors").symlink_to(saved[1] / "model.safetensors")
    with torch.no_grad():
        next(iter(saved[0].parameters.values())).add_(1.0)
    restore(saved[0], Saved(folder))
    assert saved[0].weights_digest() == Saved(saved[1]).about().weights_digest


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 1, "step": 1' + "0" * 400 + "}",
        '{"format": 1, "step": NaN}',
        '{"format": 1, "step": 1e400}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format": 1, "format": 2}',
        '{"format": "\\ud800"}',
        b"\xff\xfe",
        b"",
    ],
    ids=lambda text: str(text)[:24],
)
def test_numbers_nesting_and_bytes_that_nobody_writes_are_refused(saved, copy, text):
    folder = copy(without="state.json")
    (folder / "state.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    sealed(folder)
    with pytest.raises(checkpoint.CheckpointError, match=r"state\.json"):
        restore(saved[0], Saved(folder))


def test_a_text_too_large_to_be_one_is_not_read(saved, copy):
    folder = copy(without="COMPLETE")
    with (folder / "COMPLETE").open("wb") as file:
        file.truncate(checkpoint.MOST + 1)
    with pytest.raises(checkpoint.CheckpointError, match="is larger than"):
        restore(saved[0], Saved(folder))


@pytest.mark.parametrize(
    ("shape", "offsets"), [([2**40], [0, 2**42]), ([2**62, 2**62], [0, 4]), ([2**31], [0, 4]), ([-1], [0, 4])]
)
def test_a_tensor_that_only_claims_its_size_takes_no_memory(tmp_path, shape, offsets):
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(checkpoint.CheckpointError, match=r"x\.safetensors"):
        checkpoint.read_tensors(path)
    path.write_bytes(((1 << 63) - 1).to_bytes(8, "little") + header)
    with pytest.raises(checkpoint.CheckpointError, match=r"x\.safetensors"):
        checkpoint.read_tensors(path)


def test_only_folders_that_a_run_names_are_checkpoints(tmp_path):
    for name in ("step_00000003", "step_1234567890", "step_3", "step_0000000x", "step_00000003 a", "step_٣٣٣٣٣٣٣٣"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "COMPLETE").touch()
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000003", "step_1234567890"]


def test_another_rank_cannot_name_a_folder_elsewhere():
    said = ("step_00000003", "../step_00000004", "/tmp/step_00000005", "step_00000006/..", "\ufffd", "step_00000007")
    assert [checkpoint.step_of(name) for name in said] == [3, None, None, None, None, 7]


def test_the_run_goes_on_from_what_it_has_refused_to_read(saved):
    restore(saved[0], Saved(saved[1]))
    assert saved[0].step == 1 and all(bool(torch.isfinite(p).all()) for p in saved[0].parameters.values())


def test_a_damaged_checkpoint_leaves_nothing_that_spoils_an_older_one(tmp_path):
    state = build(job("exchange.regime=lowrank", "exchange.every=1"), World())
    state.advance(True)
    folder = save(state, tmp_path)
    kept = folder / "residual.rank00000.safetensors"
    old = kept.read_bytes()
    save_file({**load_file(kept), "factor/head": torch.ones(2, 3)}, kept)
    about = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**about, "weights_digest": "another"}))
    sealed(folder)
    with pytest.raises(checkpoint.CheckpointError, match="do not have the digest"):
        restore(state, Saved(folder))
    (folder / "state.json").write_text(json.dumps(about))
    kept.write_bytes(old)
    sealed(folder)
    restore(state, Saved(folder))
    assert "factor/head" not in state.exchange.state()


@pytest.mark.parametrize(("optimizer", "field"), [("adamw", "exp_avg"), ("adamw", "step")])
def test_state_that_the_optimizer_keeps_of_all_parameters_must_not_be_missing_of_all(optimizer, field):
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    made = registry.load("optimizer", optimizer)
    own = made(made.Config()).optimizer(torch.nn.ParameterDict({"w": weight}))
    own.step()
    tensors = checkpoint.optimizer_tensors(own, {"w": weight})
    checkpoint.load_optimizer(own, {"w": weight}, tensors, whole=True)
    del tensors[f"{field}/w"]
    with pytest.raises(checkpoint.CheckpointError, match=f"optimizer state {field}/w is missing"):
        checkpoint.load_optimizer(own, {"w": weight}, tensors, whole=True)
    checkpoint.load_optimizer(own, {"w": weight}, {}, whole=True)


def test_an_optimizer_says_what_it_keeps():
    weight = torch.nn.Parameter(torch.ones(2))
    assert fields_of(torch.optim.AdamW([weight])) == {"step", "exp_avg", "exp_avg_sq"}
    assert fields_of(torch.optim.SGD([weight], lr=0.1)) == set()
    assert fields_of(torch.optim.SGD([weight], lr=0.1, momentum=0.9)) == {"momentum_buffer"}

    class Strange(torch.optim.SGD):
        def __init__(self, parameters, secret):
            super().__init__(parameters, lr=0.1, momentum=secret)

    assert fields_of(Strange([weight], 0.9)) == set()
