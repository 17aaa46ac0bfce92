"""The documentation as a site: its links, its reference, its tutorial."""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
from commands import Desk

from sparsetrain.cli import cli
from sparsetrain.config.load import load_job

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def headings(text: str) -> set[str]:
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in headings(target.read_text()), f"{page.name}: {link}"


def commands() -> list[str]:
    """Return every call of ours that the pages show, on one line each."""
    found = []
    for page in [*PAGES, ROOT / "README.md", ROOT / "cluster_configs/README.md", ROOT / "launchers/README.md"]:
        text = page.read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"^\|[^|]*\| `(sparsetrain [^`]*)` \|$", text, re.MULTILINE)
        found += [line.strip() for line in lines if line.strip().startswith("sparsetrain ")]
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_every_command_that_a_page_shows_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if "&" in words or ">" in words or "|" in words:
        words = words[: next(n for n, word in enumerate(words) if word in ("&", ">", "|"))]
    group, path = cli, ["sparsetrain"]
    while words and words[0] in getattr(group, "commands", {}):
        path.append(words[0])
        group = group.commands[words.pop(0)]
    assert len(path) > 1, line
    group.make_context(" ".join(path), words)  # raises for an option or a choice that there is not


def test_every_setting_of_the_how_to_is_one() -> None:
    found = re.findall(r"`(sparsetrain run JOB [^`]*)`", (ROOT / "docs/howto.md").read_text())
    assert len(found) > 10
    for line in found:
        words = tuple(word for word in shlex.split(line)[3:] if "=" in word)
        assert load_job("text_gpt", words).name, line


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r'"([\w/.-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    missing = {str(page.relative_to(ROOT / "docs")) for page in PAGES} ^ named
    assert not missing, missing


def test_the_reference_is_what_the_code_says() -> None:
    command = [sys.executable, str(ROOT / "docs/reference/generate.py"), "--check"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="zensical is not installed")
def test_the_site_builds_without_an_issue(tmp_path: pathlib.Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr, done.stdout + done.stderr
    assert (tmp_path / "site/reference/job/index.html").exists() and (tmp_path / "site/index.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whoever_follows_the_tutorial_reaches_its_end(tmp_path: pathlib.Path) -> None:
    """In a clone, line by line; `make` finds the environment that is there, and only the last word is a port's."""
    desk = Desk(tmp_path)
    clone = tmp_path / "clone"
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(pathlib.Path(sys.prefix))
    text = (ROOT / "docs/tutorial.md").read_text()
    (job,) = re.findall(r"```yaml\n# tutorial.yaml\n(.*?)```", text, re.DOTALL)
    (clone / "tutorial.yaml").write_text(job)
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    assert all(verb in lines for verb in ("make quickstart", "plan", "report", "torchrun", "own_model"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = "set -eu\n" + lines.replace("29500", str(port))
    env = {**desk.env(), "PYTHONPATH": str(clone), "WANDB_MODE": "disabled", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env=env,
        capture_output=True,
        text=True,
        timeout=850,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (clone / "runs/nodes/run.json").exists() and (clone / "runs/waves/run.json").exists()
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
