"""The page on classes of one's own holds what it shows."""

import dataclasses
import json
import pathlib
import re
import shutil
import sys

import pytest
import torch
import yaml
from commands import Desk

from sparsetrain import registry
from sparsetrain.cli import cli
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Log
from sparsetrain.config.load import load_job, parse
from sparsetrain.engine.state import build
from sparsetrain.export import load
from sparsetrain.launch.wandb_sweep import export

TEXT = (pathlib.Path(__file__).parent.parent / "docs/bring-your-own.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_classes_of_the_page_train(tmp_path):
    desk = Desk(tmp_path)
    (tmp_path / "mine.py").write_text(block("python"))
    (tmp_path / "job.yaml").write_text(block("yaml"))
    code, out, err = desk.call("sparsetrain", "run", "job.yaml", "log.wandb.mode=disabled")
    assert code == 0, err
    assert "weights 50.0% sparse" in out and "mask epoch 2" in out
    assert desk.run_json("mine")["result"]["eval/loss"] < 5.0
    code, _, err = desk.call("sparsetrain", "export", "mine", "--format", "safetensors")
    assert code == 0 and (tmp_path / "runs/mine/export/export.json").exists(), err
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)


@pytest.mark.parametrize(
    ("path", "name", "method"), [("model", "mine:Random", "loss"), ("exchange.sparsifier", "mine:Largest", "select")]
)
def test_a_class_that_lacks_a_method_is_refused_by_name(tmp_path, monkeypatch, path, name, method):
    (tmp_path / "mine.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(JobError, match=rf"^{path}: cannot load .* '{name}': \w+ has no method {method}"):
        load_job("quickstart", (f"{path}={name}",))


def test_every_mask_method_structure_distribution_and_schedule_is_on_the_page_of_masks():
    text = (pathlib.Path(__file__).parent.parent / "docs/masks.md").read_text()
    for name in registry.names("mask_method"):
        assert f"\n### {name}\n" in text
    for kind in ("structure", "distribution", "mask_schedule", "regulariser"):
        assert all(f"`{name}`" in text for name in registry.names(kind)), kind


def test_the_masks_of_the_page_are_a_job():
    text = (pathlib.Path(__file__).parent.parent / "docs/masks.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    masks = parse({"name": "x", "optimizer": "sgd", **yaml.safe_load(block)}).masks
    assert masks.structure.config.rows == 32 and masks.rules == {"*qkv*": 0.8}


def test_the_checkpoints_of_the_page_are_a_job_and_its_verbs_exist():
    text = (pathlib.Path(__file__).parent.parent / "docs/checkpoints.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    rules = parse({"name": "x", **yaml.safe_load(block)}).checkpoint
    assert {field.name for field in dataclasses.fields(rules)} == set(yaml.safe_load(block)["checkpoint"])
    assert set(re.findall(r"^sparsetrain checkpoints (\w+)", text, re.MULTILINE)) == set(
        cli.commands["checkpoints"].commands
    )


def test_the_log_of_the_page_is_the_default_and_its_verbs_exist():
    text = (pathlib.Path(__file__).parent.parent / "docs/tracking.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert parse({"name": "x", **yaml.safe_load(block)}).log == parse({"name": "x"}).log
    fields = {field.name for field in dataclasses.fields(Log)}
    assert fields - {"folder"} == set(yaml.safe_load(block)["log"])
    assert set(re.findall(r"^sparsetrain (\w+)", text, re.MULTILINE)) <= set(cli.commands)
    sweep = re.search(r"^sparsetrain sweep (\w+) (.*) --seeds (\d) --wandb", text, re.MULTILINE)
    assert yaml.safe_load(export(sweep[1], tuple(sweep[2].split()), int(sweep[3]), None))["parameters"]["seed"]


def test_the_couplings_of_the_page_are_removable_units(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    job = parse({**yaml.safe_load(block("yaml")), "masks": {"method": "set", "structure": "neuron", "sparsity": 0.75}})
    masks = build(job, World()).masks
    kept = masks.masks.masks["out.weight"].any(0)
    assert int(kept.sum()) == 8 and torch.all(masks.masks.masks["embed.weight"] == kept)


def test_every_cluster_for_plan_is_one():
    from sparsetrain.plan.cluster import cluster_of, load_cluster

    root = pathlib.Path(__file__).parent.parent
    files = sorted((root / "cluster_configs/plan").glob("*.yaml"))
    assert len(files) >= 3 and all(load_cluster(str(path)).fabric().ranks > 1 for path in files)
    (block,) = re.findall(r"```yaml\n(.*?)```", (root / "docs/concepts/planner.md").read_text(), re.DOTALL)
    assert cluster_of(yaml.safe_load(block)).workers == 32


def test_the_page_on_looking_names_what_is_there():
    text = (pathlib.Path(__file__).parent.parent / "docs/look.md").read_text()
    assert set(re.findall(r"^sparsetrain (\w+)", text, re.MULTILINE)) == {"report", "watch"} <= set(cli.commands)
    sections = set(re.findall(r"^\| ([A-Z][a-z ]+?)(?: \(.*?\))? \|", text, re.MULTILINE))
    source = (pathlib.Path(__file__).parent.parent / "sparsetrain/track/page.py").read_text()
    assert sections == set(re.findall(r'_section\(\s*"([^"]+)"', source)) - {"Figures"}


def test_the_page_on_exports_names_every_format_and_what_load_offers():
    text = (pathlib.Path(__file__).parent.parent / "docs/export.md").read_text()
    assert set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)) == set(registry.names("format"))
    (calls,) = re.findall(r"```python\nimport load\n(.*?)```", text, re.DOTALL)
    assert all(hasattr(load, name) for name in re.findall(r"load\.(\w+)\(", calls))
    (entries,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert set(json.loads(entries)) == {"float32"}
