"""Every example runs as its first lines say."""

import importlib
import importlib.util
import pathlib
import re
import shutil

import pytest
from commands import Desk

EXAMPLES = pathlib.Path(__file__).parent.parent.parent / "docs/examples"
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
QUIET = "log.wandb.mode=disabled"


def missing(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def desk(tmp_path: pathlib.Path):
    desk = Desk(tmp_path)
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, desk.folder)
    yield desk
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


def test_every_example_is_run_by_a_test():
    text = pathlib.Path(__file__).read_text()
    files = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".yaml")]
    assert len(files) >= 8 and all(name.partition(".")[0] in text for name in files)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["own_loop.py", "ddp_hook.py"])
def test_loops_learn_on_two_ranks(desk: Desk, name: str):
    code, out, err = desk.call(*TORCHRUN, name, timeout=100)
    assert code == 0, err
    losses = [float(loss) for loss in re.findall(r"rank \d: loss ([0-9.]+)", out)]
    assert len(losses) == 2 and all(loss < 0.95 for loss in losses), out


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_model_and_data_of_ones_own(desk: Desk):
    assert (EXAMPLES / "own_model.py").exists()
    code, out, err = desk.call("sparsetrain", "run", "own_model.yaml", QUIET, timeout=150)
    assert code == 0, err
    result = desk.run_json("waves")["result"]
    assert result["eval/loss"] < 0.5 and "80.0% sparse" in out


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_inside_ray_train(desk: Desk):
    code, out, err = desk.call("ray_train", timeout=200)
    assert code == 0, err
    (loss,) = re.findall(r"loss ([0-9.]+) after 40 steps", out)
    assert float(loss) < 1.0


@pytest.mark.timeout(120)
@missing("accelerate")
def test_inside_accelerate(desk: Desk):
    code, out, err = desk.call(*TORCHRUN, "accelerate_loop.py", timeout=100)
    assert code == 0, err
    assert len(re.findall(r"rank \d: loss 0\.\d+", out)) == 2


@pytest.mark.timeout(180)
@missing("transformers")
def test_a_hugging_face_model_from_safetensors(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    from safetensors.torch import save_file

    transformers = importlib.import_module("transformers")

    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 64}
    saved = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes)
    ).state_dict()
    weights = {name: tensor.clone() for name, tensor in saved.items() if name != "lm_head.weight"}
    save_file(weights, desk.folder / "model.safetensors")
    code, out, err = desk.call(
        "sparsetrain", "run", "hugging_face.yaml", "train.init_from=model.safetensors", QUIET, timeout=150
    )
    assert code == 0, err
    assert (EXAMPLES / "hugging_face.py").exists() and "50.0% sparse" in out
