"""The command line: mistakes are one line and code 2, and nothing is made or started."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import time

import pytest
import yaml

from sparsetrain.cli import main


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRONG_FILES = {
    "unknown key": ("name: a\ntrain: {stepz: 3}", "train.stepz: unknown key"),
    "unknown section": ("name: a\ntrian: {steps: 3}", "did you mean 'train'"),
    "type": ("name: a\ntrain: {steps: many}", "train.steps:"),
    "range": ("name: a\nexchange: {density: 2}", "exchange.density:"),
    "choice": ("name: a\nexchange: {regime: spares}", "exchange.regime:"),
    "component": ("name: a\nmodel: gtp", "did you mean 'gpt'"),
    "option": ("name: a\nmodel: {name: gpt, layer: 3}", "did you mean 'layers'"),
    "module": ("name: a\nmodel: nowhere:Model", "nowhere"),
    "no name": ("seed: 1", "name: is missing"),
    "bad name": ("name: ../a", "name:"),
    "rule": ("name: a\ntrain: {steps: 5}\nexchange: {every: 10}", "exchange.every:"),
    "not yaml": ("name: [", "not readable as YAML"),
    "a list": ("- a", "a job file holds a mapping"),
    "twice": ("name: a\nname: b", "given twice"),
    "version": ("name: a\nversion: 9", "version:"),
}


@pytest.mark.parametrize("kind", sorted(WRONG_FILES))
def test_a_wrong_job_file_is_one_line(kind: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = WRONG_FILES[kind]
    (folder / "job.yaml").write_text(text)
    code, out, err = call(capsys, "run", "job.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]


WRONG_CALLS = {
    "verb": (["rnu"], "did you mean 'run'"),
    "option": (["run", "quickstart", "--dry-rnu"], "--dry-run"),
    "no job": (["run"], "Missing argument 'JOB'"),
    "preset": (["run", "quikstart"], "did you mean 'quickstart'"),
    "override": (["run", "quickstart", "train.steps"], "a.b=value"),
    "override path": (["run", "quickstart", "train.stepz=3"], "did you mean 'steps'"),
    "override value": (["run", "quickstart", "train.steps=0"], "train.steps:"),
    "against": (["run", "quickstart", "--against", "dens"], "dens"),
    "kind": (["list", "modle"], "did you mean 'model'"),
    "resume": (["resume", "nothing"], "nothing: no such run"),
    "report": (["report", "nothing"], "nothing: no such run"),
    "watch": (["watch", "nothing"], "nothing: no such run"),
    "config": (["config", "shwo"], "shwo"),
}


@pytest.mark.parametrize("kind", sorted(WRONG_CALLS))
def test_a_wrong_call_is_one_line(kind: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = WRONG_CALLS[kind]
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_gone_is_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, err = call(capsys, "list", "way")
    assert (code, out, err) == (2, "", "the folder that you are in is gone: No such file or directory\n")


def test_dry_run_starts_and_makes_nothing(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "run", "quickstart", "--dry-run", "--json", "--against", "dense")
    plans = json.loads(out)["plans"]
    assert code == 0
    assert [(plan["name"], plan["workers"]) for plan in plans] == [("quickstart-dense", 2), ("quickstart", 2)]
    assert list(folder.iterdir()) == []


def test_config_show_is_a_job_file_again(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "config", "show", "quickstart", "train.steps=50")
    assert code == 0
    assert yaml.safe_load(out)["train"]["steps"] == 50
    (folder / "job.yaml").write_text(out)
    assert call(capsys, "config", "show", "job.yaml") == (0, out, "")


def test_schema_names_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "config", "schema")
    assert code == 0
    assert "exchange" in json.loads(out)["properties"]


def test_list_shows_every_entry(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert {"quickstart", "gpt", "topk", "rigl"} <= set(out.split())
    assert "not available" not in out


def test_doctor_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert len(out.splitlines()) < 25
    assert re.search(r"^kernels +(native|reference)", out, re.MULTILINE)
    assert call(capsys, "doctor", "--json")[0] == 0


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    began = time.perf_counter()
    code = "import sys; from sparsetrain.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print({'torch', 'ray', 'wandb', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert time.perf_counter() - began < 5  # alone 0.1 s; machines may be busy
