"""`sparsetrain checkpoints`, on runs in their folder and behind a URL."""

from __future__ import annotations

import json
import pathlib

import pytest
from safetensors.torch import load_file, save_file
from small import TREE
from stores import damage

from sparsetrain.cli import main
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import apply_overrides, parse, to_yaml
from sparsetrain.engine import checkpoint
from sparsetrain.engine.remote_store import RemoteStore
from sparsetrain.engine.store import StoreError, open_store
from sparsetrain.engine.trainer import train
from sparsetrain.launch.run import Options, resume_run
from sparsetrain.worker.stored import refuse

FIRST, SECOND, LAST = "step_00000002", "step_00000004", "step_00000006"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["checkpoints", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture(params=["folder", "url"])
def run(request, tmp_path, monkeypatch):
    """A finished run called `tiny` under runs/, and its store."""
    monkeypatch.chdir(tmp_path)
    options = ("train.steps=6", "checkpoint.every=2", "checkpoint.keep=9", "train.evaluate_every=2")
    if request.param == "url":
        options = (*options, f"checkpoint.url=file://{tmp_path}/far")
    job = parse(apply_overrides(TREE, options))
    folder = tmp_path / "runs/tiny"
    train(job, World(), folder, lambda line: None)
    (folder / "job.yaml").write_text(to_yaml(job))
    assert (folder / "checkpoints").exists() == (request.param == "folder")
    return open_store(job, folder)


def test_list_shows_what_is_there(run, capsys):
    damage(run, SECOND, "COMPLETE")
    damage(run, FIRST, "state.json", b"{}")
    code, out, _ = call(capsys, "list", "tiny")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 4
    assert lines[0].split() == ["step", "written", "MB", "workers", "eval", "loss", "complete"]
    assert lines[1].split()[0] == "2" and "yes, but state.json: is not the file that was saved" in lines[1]
    assert lines[2].split()[0] == "4" and lines[2].endswith("no")
    assert lines[3].split()[0] == "6" and lines[3].split()[-3] == "1" and lines[3].endswith("yes")
    code, out, _ = call(capsys, "list", "tiny", "--json")
    rows = json.loads(out)["checkpoints"]
    assert [row["complete"] for row in rows] == [True, False, True]
    assert rows[2]["eval_loss"] > 0 and rows[2]["bytes"] > 10_000 and rows[2]["when"] > 1e9


def reseal(run, name: str, file: str, change) -> None:
    """Change a file's tensors as if they had been saved so."""
    with run.fetch(name, file) as path:
        tensors = load_file(path)
        change(tensors)
        saved = path.with_name("changed")
        save_file(tensors, saved)
        data, digest = saved.read_bytes(), checkpoint.digest(saved)
        saved.unlink()
    damage(run, name, file, data)
    with run.fetch(name, "COMPLETE") as path:
        told = json.loads(path.read_text())
    told["blake2b"][file], told["bytes"][file] = digest, len(data)
    damage(run, name, "COMPLETE", json.dumps(told).encode())


def test_verify_names_file_and_difference(run, capsys):
    assert call(capsys, "verify", "tiny") == (0, f"{FIRST}: whole\n{SECOND}: whole\n{LAST}: whole\n", "")
    damage(run, FIRST, "residual.rank00000.safetensors")
    damage(run, SECOND, "optimizer.safetensors", b"damaged")
    reseal(run, LAST, "model.safetensors", lambda tensors: tensors["embed.weight"].view(-1)[3:4].fill_(float("nan")))
    code, out, err = call(capsys, "verify", "tiny")
    assert (code, err) == (1, "")
    assert f"{FIRST}: residual.rank00000.safetensors: " in out
    assert f"{SECOND}: optimizer.safetensors: is not the file that was saved" in out
    assert f"{LAST}: model.safetensors: embed.weight is not finite" in out
    code, out, _ = call(capsys, "verify", "tiny", "--json")
    assert code == 1 and all(row["problems"] for row in json.loads(out)["checkpoints"])


def test_verify_compares_the_shapes_of_optimizer_state_with_the_models(run, capsys):
    def cut(tensors) -> None:
        tensors["embed.weight"] = tensors["embed.weight"][:1].clone()

    reseal(run, LAST, "model.safetensors", cut)
    code, out, _ = call(capsys, "verify", "tiny")
    assert code == 1 and "embed.weight is (256, 32), the model's is (1, 32)" in out


def test_prune_keeps_the_newest_the_best_and_the_damaged(run, capsys):
    damage(run, FIRST, "model.safetensors", b"damaged")
    code, out, _ = call(capsys, "prune", "tiny", "--keep", "1", "--dry-run")
    assert code == 0 and f"checkpoint {FIRST} is damaged and stays" in out and f"would remove {SECOND}\n" in out
    assert run.complete() == [FIRST, SECOND, LAST]
    assert call(capsys, "prune", "tiny")[1].endswith("nothing to remove\n")  # the job keeps nine
    code, out, _ = call(capsys, "prune", "tiny", "--keep", "1", "--json")
    assert json.loads(out)["removed"] == [SECOND]
    assert run.complete() == [FIRST, LAST]


def test_prune_does_not_count_damaged_ones_among_the_newest(run, capsys):
    damage(run, LAST, "model.safetensors", b"damaged")
    assert f"removed {FIRST}\n" in call(capsys, "prune", "tiny", "--keep", "1")[1]
    assert run.complete() == [SECOND, LAST]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "nothing"), "nothing: no such run"),
        (("verify",), "Missing argument 'RUN'"),
        (("prune", "nothing", "--keep", "0"), "--keep"),
        (("lsit", "a"), "lsit"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err


@pytest.mark.parametrize("verb", ["list", "verify", "prune"])
def test_a_store_that_does_not_answer_is_one_line(verb, tmp_path, monkeypatch, capsys):
    def nothing(self):
        raise StoreError(f"{self.name} has not answered for 3 s, listing (checkpoint.timeout)")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RemoteStore, "complete", nothing)
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/job.yaml").write_text(to_yaml(parse({**TREE, "checkpoint": {"url": "memory://far"}})))
    said = "checkpoints: memory://far/tiny has not answered for 3 s, listing (checkpoint.timeout)\n"
    assert call(capsys, verb, "tiny") == (2, "", said)


def test_a_renamed_run_with_a_url_is_not_resumed_without_its_checkpoints(tmp_path):
    (tmp_path / "other").mkdir()
    job = parse(apply_overrides(TREE, ("checkpoint.url=memory://far",)))
    (tmp_path / "other/job.yaml").write_text(to_yaml(job))
    with pytest.raises(JobError, match=r"^name: .*/other was called tiny, and so are its checkpoints in memory://far"):
        resume_run(str(tmp_path / "other"), (), Options())


def test_checkpoints_of_another_job_or_run_are_refused(tmp_path):
    options = ("train.steps=2", f"checkpoint.url=file://{tmp_path}/far")
    job = parse(apply_overrides(TREE, options))
    here, there = tmp_path / "here", tmp_path / "there"
    refuse(job, here, fresh=True)
    train(job, World(), here, lambda line: None)
    refuse(job, there, fresh=False)  # on another machine it goes on
    with pytest.raises(JobError, match=r"^--fresh: file://.*/far/tiny holds 1 checkpoints: give a new name"):
        refuse(job, there, fresh=True)
    other = parse(apply_overrides(TREE, (*options, "train.batch_size=4")))
    with pytest.raises(JobError, match=r"^train\.batch_size: is 4 here and 2 in the run; .* of another job"):
        refuse(other, there, fresh=False)
    with pytest.raises(JobError, match=r"^checkpoint\.resume: is false: "):
        refuse(parse(apply_overrides(TREE, (*options, "checkpoint.resume=false"))), there, fresh=False)
    assert pathlib.Path(tmp_path / "far/tiny/step_00000002/COMPLETE").is_file()
