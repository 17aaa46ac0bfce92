"""`sparsetrain export` on real runs, from the command line."""

from __future__ import annotations

import errno
import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from exported import finished
from safetensors.torch import load_file, save_file
from stores import damage, sealed

from sparsetrain.cli import main
from sparsetrain.engine.local_store import LocalStore
from sparsetrain.export import verb
from sparsetrain.export.check import alone, verdict
from sparsetrain.export.trained import load_trained
from sparsetrain.registry import names

RIGL = {"method": "rigl", "sparsity": 0.95, "every": 2, "end": 1.0}
NEURONS = {"method": "magnitude", "structure": "neuron", "sparsity": 0.5, "every": 2, "end": 1.0}


# What somebody does who has torch, safetensors and numpy: the tensors, and a model of plain torch with what is stored.
PLAIN = """
import runpy, sys
sys.modules["sparsetrain"] = None
import torch
from safetensors.torch import load_file
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(784, 64), nn.Linear(64, 32), nn.Linear(32, 10)])
    def forward(self, x):
        x = self.layers[0](x.flatten(1)).relu()
        return self.layers[2](self.layers[1](x).relu())

folder = sys.argv[1]
probe = load_file(folder + "/probe.safetensors")
for name in ("compressed", "csr"):
    path = f"{folder}/{name}/load.py"
    sys.argv = [path, f"{folder}/{name}.safetensors"]
    runpy.run_path(path, run_name="__main__")
    net = runpy.run_path(path)["attach"](Net())
    print(name, type(net.layers[0]).__name__, bool((net(probe["x"]) - probe["y"]).abs().max() < 1e-5))
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line of a call that is refused."""
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a run of each model under runs/."""
    folder = tmp_path_factory.mktemp("trained")
    finished(folder, "mlp", RIGL)
    finished(folder, "cnn", NEURONS)
    finished(folder, "gpt", {**RIGL, "sparsity": 0.9})
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """Return a copy of that folder, which is the current one."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Spare the process without sparsetrain, which takes seconds."""
    told = {"how": "load.py", "same": True, "difference": 0.0}
    monkeypatch.setattr(verb, "alone", lambda trained, folders: dict.fromkeys(folders, told))


def files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("run", "fitting"),
    [
        ("mlp", {"safetensors", "compressed", "csr"}),
        pytest.param("cnn", {"safetensors", "compressed", "csr", "shrunk"}, marks=pytest.mark.slow),
        pytest.param("gpt", {"safetensors", "compressed", "csr"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_exported_in_all_formats_that_fit_and_each_gives_the_same_outputs(here, capsys, run, fitting):
    code, out, _ = call(capsys, run, "--json")
    told = json.loads(out)
    rows = {row["format"]: row for row in told["formats"]}
    assert code == 0 and fitting <= set(rows) - {"dense"}
    assert set(rows) - {"dense"} | set(told["refused"]) == set(names("format"))
    folder = here / "runs" / run / "export"
    assert told["folder"] == str(folder)
    for name in set(rows) - {"dense"}:
        row = rows[name]
        assert row["difference"] <= 1e-5 and row["alone"]["difference"] <= 1e-5, name
        assert row["alone"]["same"] in (True, None)
        assert (folder / row["file"]).stat().st_size == row["bytes"]
        assert (folder / row["file"]).stat().st_mode & 0o777 == (folder / "README.md").stat().st_mode & 0o777
        assert set(row["latency_s"]) == {"1", "4"} and min(row["latency_s"].values()) > 0
    assert rows["compressed"]["bytes"] <= 1.15 * told["bound_bytes"]
    assert not list(here.rglob("__pycache__")) and not list((here / "runs" / run).glob("export.*"))


def test_the_loader_works_where_there_is_no_sparsetrain(here, capsys, quick):
    assert call(capsys, "mlp", "--format", "compressed", "--format", "csr")[0] == 0
    wanted = load_trained("mlp", None, print)
    moved = here / "moved"
    shutil.copytree(here / "runs/mlp/export", moved)
    save_file({"x": wanted.inputs, "y": wanted.outputs}, moved / "probe.safetensors")
    command = [sys.executable, "-I", "-c", PLAIN, str(moved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "compressed Linear True\ncsr SparseLinear True\n", "")
    for name in ("compressed", "csr"):
        found = load_file(moved / f"{name}.safetensors")
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.tensors.items())


def test_an_export_that_needs_sparsetrain_or_computes_something_else_is_found(here, capsys, quick):
    assert call(capsys, "mlp", "--format", "compressed", "--format", "csr", "--format", "safetensors")[0] == 0
    export = here / "runs/mlp/export"
    loader = export / "csr/load.py"
    loader.write_text(f"import sparsetrain\n{loader.read_text()}")
    other = load_trained("mlp", 2, print)
    found = alone(other, {name: export / name for name in ("compressed", "csr", "safetensors")})
    assert verdict(found["csr"]).startswith("it cannot be loaded without sparsetrain: ")
    for name in ("compressed", "safetensors"):
        assert verdict(found[name]) == "loaded without sparsetrain, its tensors are not the run's"
    found["safetensors"]["same"] = None
    assert "its outputs differ by" in verdict(found["safetensors"])


def test_the_table_and_the_card(here, capsys, quick):
    (here / "runs/mlp/env.json").write_text('{"versions": {"torch": "9.9\\n\\n# Ours"}}')
    code, out, _ = call(capsys, "mlp", "--format", "safetensors", "--format", "compressed")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("mlp, step_00000004: 95.00% sparse, in ")
    assert [line.split()[0] for line in lines[3:6]] == ["dense", "safetensors", "compressed"]
    assert "thread" in lines[-1]
    text = (here / "runs/mlp/export/README.md").read_text()
    about = json.loads((here / "runs/mlp/checkpoints/step_00000004/state.json").read_text())
    for words in (
        *(
            "# mlp\n",
            "rigl to sparsity 0.95, unstructured, erk, epoch 1",
            "4 steps, 16 samples, 1 worker",
            "torch 9.9 # Ours (trained)",
        ),
        *(about["weights_digest"], "`layers.0.weight` | 0.0", "eval/loss ", "load.py", "name sgd, learning_rate 0.1"),
    ):
        assert words in text, words
    told = json.loads((here / "runs/mlp/export/export.json").read_text())
    assert told["job"]["masks"]["sparsity"] == 0.95 and len(told["masks_digest"]) == 32


def test_nothing_secret_is_in_the_card(here, capsys, quick):
    job = here / "runs/mlp/job.yaml"
    job.write_text(job.read_text().replace("exported:Images", "keeper:Kept") + "\n")
    (here / "keeper.py").write_text(
        "import dataclasses\nfrom exported import Images\n"
        "class Kept(Images):\n"
        "    @dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "    class Config:\n        token: str = 'hush'\n"
        "    def describe(self):\n        return {'source': 'https://me:hush@host/data'}\n"
    )
    sys.path.insert(0, str(here))
    try:
        assert call(capsys, "mlp", "--format", "safetensors")[0] == 0
    finally:
        sys.path.remove(str(here))
        sys.modules.pop("keeper", None)
    text = "".join((here / "runs/mlp/export" / name).read_text() for name in ("README.md", "export.json"))
    assert "hush" not in text and "https://***@host/data" in text


def test_dry_run_writes_nothing(here, capsys):
    before = files(here)
    code, out, _ = call(capsys, "cnn", "--dry-run")
    assert code == 0 and files(here) == before
    assert "would export cnn, step_00000004" in out and "left out bsr: " in out
    told = json.loads(call(capsys, "cnn", "--dry-run", "--json")[1])
    assert "shrunk" in told["formats"] and told["refused"]["2:4"].startswith("no masked matrix")
    assert files(here) == before


def test_a_step_can_be_named(here, capsys):
    assert json.loads(call(capsys, "mlp", "--step", "2", "--dry-run", "--json")[1])["checkpoint"] == "step_00000002"
    assert refused(capsys, "mlp", "--step", "3") == "--step: no complete checkpoint after step 3; allowed: 2, 4\n"


def test_a_damaged_checkpoint_is_skipped_with_a_word_or_refused_by_name(here, capsys):
    damage(LocalStore(here / "runs/mlp/checkpoints"), "step_00000004", "model.safetensors")
    code, out, err = call(capsys, "mlp", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["checkpoint"] == "step_00000002"
    assert err.startswith("checkpoint step_00000004 skipped: ") and "model.safetensors" in err
    assert refused(capsys, "mlp", "--step", "4").startswith("--step 4: ")
    damage(LocalStore(here / "runs/mlp/checkpoints"), "step_00000002", "masks.safetensors")
    code, _, err = call(capsys, "mlp")
    assert code == 2 and err.splitlines()[-1].endswith("is readable") and len(err.splitlines()) == 3


def test_a_checkpoint_that_lacks_one_mask_is_none_of_this_job(here, capsys):
    folder = here / "runs/mlp/checkpoints/step_00000004"
    masks = load_file(folder / "masks.safetensors")
    save_file({name: mask for name, mask in masks.items() if name != "layers.0.weight"}, folder / "masks.safetensors")
    sealed(folder)
    assert refused(capsys, "mlp", "--step", "4") == "--step 4: no mask of layers.0.weight, which the job masks\n"


def test_a_checkpoint_with_a_mask_too_many_is_none_of_this_job(here, capsys):
    folder = here / "runs/mlp/checkpoints/step_00000004"
    masks = load_file(folder / "masks.safetensors")
    save_file({**masks, "layers.0.bias": torch.full((8,), 255, dtype=torch.uint8)}, folder / "masks.safetensors")
    sealed(folder)
    said = refused(capsys, "mlp", "--step", "4")
    assert said.startswith("--step 4: ") and "layers.0.bias" in said and said.count("\n") == 1


def test_mistakes_are_one_line(here, capsys):
    assert "nothing: no such run" in refused(capsys, "nothing")
    assert "did you mean 'safetensors'" in refused(capsys, "mlp", "--format", "safetensor")
    assert refused(capsys, "mlp", "--format", "bsr").startswith("--format bsr: no mask is made of whole square blocks")
    (here / "taken").mkdir()
    (here / "taken/mine").write_text("keep")
    assert "taken is there and is no export" in refused(capsys, "mlp", "--out", "taken")
    assert "is there and is no export" in refused(capsys, "mlp", "--out", "runs/mlp")
    shutil.rmtree(here / "runs/mlp/checkpoints")
    assert "no complete checkpoint" in refused(capsys, "mlp")
    assert (here / "taken/mine").read_text() == "keep"
    assert refused(capsys, "mlp", "--out", "") == "--out: is empty; name a folder\n"


def test_what_no_export_has_put_there_is_never_removed(here, capsys, quick):
    (here / "other").mkdir()
    (here / "other/export.json").write_text("{}")
    (here / "other/precious").write_text("keep")
    assert "other is there and is no export (export.json is of none)" in refused(capsys, "mlp", "--out", "other")
    assert (here / "other/precious").read_text() == "keep"
    assert call(capsys, "mlp", "--format", "safetensors", "--out", "mine")[0] == 0
    (here / "mine/safetensors/notes.txt").write_text("keep")
    assert "(safetensors/notes.txt is of none)" in refused(capsys, "mlp", "--format", "csr", "--out", "mine")
    assert (here / "mine/safetensors/notes.txt").read_text() == "keep"


def test_a_full_disk_leaves_the_last_export_as_it_was(here, capsys, quick):
    assert call(capsys, "mlp", "--format", "safetensors")[0] == 0
    before = files(here)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        line = refused(capsys, "mlp", "--format", "compressed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith("--out: cannot write ") and files(here) == before


def test_an_export_is_replaced_whole(here, capsys, quick):
    assert call(capsys, "mlp", "--format", "compressed", "--out", "mine")[0] == 0
    for name in ("mine.unfinished", "mine.removed"):
        (here / name).mkdir()
        (here / name / "thesis.txt").write_text("is nobody's but the user's")
    assert call(capsys, "mlp", "--format", "safetensors", "--out", "mine")[0] == 0
    assert files(here / "mine") == ["README.md", "export.json", "safetensors/model.safetensors"]
    assert sorted(path.name for path in here.glob("*mine*")) == ["mine", "mine.removed", "mine.unfinished"]
    (here / "link").symlink_to("mine")
    for _ in range(2):
        assert call(capsys, "mlp", "--format", "compressed", "--out", "link")[0] == 0
        assert (here / "link").is_symlink() and "compressed/model.safetensors" in files(here / "mine")
    assert sorted(path.name for path in here.glob("*link*")) == ["link"]


def test_the_folder_that_one_is_in_is_not_replaced(here, capsys, quick, monkeypatch):
    (here / "empty/inner").mkdir(parents=True)
    monkeypatch.chdir(here / "empty/inner")
    line = refused(capsys, str(here / "runs/mlp"), "--format", "compressed", "--out", ".")
    assert line.endswith("is the folder that you are in, or holds it; name another\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_ended_leaves_nothing(here, capsys, quick, monkeypatch, number):
    monkeypatch.setattr(verb, "compare", lambda *_: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(["export", "mlp", "--format", "compressed", "--out", "gone"])
    assert ended.value.code == 130 and not list(here.glob("*gone*")) and signal.getsignal(signal.SIGTERM) is before


def test_a_format_that_fails_is_left_out_with_its_reason(here, capsys, quick, monkeypatch):
    def failing(*_):
        raise RuntimeError("torch.export: no\nand more")

    monkeypatch.setattr("sparsetrain.export.formats.shrunk.write_program", failing)
    told = json.loads(call(capsys, "cnn", "--json")[1])
    assert told["refused"]["shrunk"] == "RuntimeError: torch.export: no"
    assert not (here / "runs/cnn/export/shrunk").exists()
    assert refused(capsys, "cnn", "--format", "shrunk") == "--format shrunk: RuntimeError: torch.export: no\n"
    monkeypatch.setattr(verb, "compare", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert refused(capsys, "cnn", "--format", "csr").endswith("No space left\n")


def test_a_model_without_masks_is_dense_alone(tmp_path, monkeypatch, capsys):
    finished(tmp_path, "mlp", None)
    monkeypatch.chdir(tmp_path)
    told = json.loads(call(capsys, "mlp", "--dry-run", "--json")[1])
    assert set(told["formats"]) - {"onnx"} == {"safetensors"}
    assert told["refused"]["compressed"] == "the run has no masks"


def test_checkpoints_behind_a_url_are_exported_too(tmp_path, monkeypatch, capsys):
    finished(tmp_path, "mlp", RIGL, checkpoint={"url": f"file://{tmp_path}/far"})
    monkeypatch.chdir(tmp_path)
    assert not (tmp_path / "runs/mlp/checkpoints").exists()
    assert "compressed" in json.loads(call(capsys, "mlp", "--dry-run", "--json")[1])["formats"]


def test_what_counts_is_what_evaluation_sees(tmp_path, monkeypatch):
    # Top-KAST trains more weights than its forward pass has.
    run = finished(tmp_path, "mlp", {"method": "topkast", "sparsity": 0.9, "every": 2, "end": 1.0})
    found = load_trained(str(run), None, print)
    assert found.masks.updates
    saved = load_file(run / "checkpoints/step_00000004/model.safetensors")
    for name, mask in found.masks.masks.items():
        assert torch.equal(found.tensors[name], torch.where(mask, saved[name], 0.0))
        assert bool((saved[name][~mask] != 0).any())


def test_weights_that_a_run_holds_as_values_alone_are_exported_whole(tmp_path):
    run = finished(tmp_path, "mlp", RIGL, compute="sparse")
    saved = load_file(run / "checkpoints/step_00000004/model.safetensors")
    assert saved["layers.0.weight"].ndim == 1
    found = load_trained(str(run), None, print)
    mask = found.masks.masks["layers.0.weight"]
    assert torch.equal(found.tensors["layers.0.weight"][mask], saved["layers.0.weight"])
    assert not found.tensors["layers.0.weight"][~mask].any()


def test_masks_that_are_still_learned_are_refused(tmp_path, monkeypatch, capsys):
    masks = {"method": "str", "sparsity": 0.8, "every": 2, "end": 1.0}
    finished(tmp_path, "mlp", masks, train={"steps": 8, "batch_size": 4}, checkpoint={"every": 2, "keep": 9})
    monkeypatch.chdir(tmp_path)
    assert "str still learns its masks at step 2" in refused(capsys, "mlp", "--step", "2")
    assert json.loads(call(capsys, "mlp", "--dry-run", "--json")[1])["checkpoint"] == "step_00000008"
