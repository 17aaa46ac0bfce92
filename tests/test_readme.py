"""The README's code runs, and its commands exist."""

import pathlib
import re

import pytest
import yaml
from commands import Desk

from sparsetrain.cli import cli
from sparsetrain.config.load import parse

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [0, 1])
def test_the_doors_open_on_two_ranks(number, tmp_path):
    desk = Desk(tmp_path)
    (tmp_path / "door.py").write_text(blocks("python")[number])
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "door.py")
    code, out, err = desk.call(*launch, timeout=100)
    assert code == 0, err
    if number == 0:
        said = re.findall(r"rank \d: loss ([0-9.]+), 90% sparse", out)
        assert len(said) == 2 and all(float(loss) < 1.0 for loss in said), out
    assert desk.left() == {}


def test_the_job_file_is_a_job():
    (text,) = blocks("yaml")
    assert parse(yaml.safe_load(text)).masks.sparsity == 0.9


def test_every_verb_that_it_names_exists():
    named = set(re.findall(r"(?:^|`)sparsetrain (\w+)", TEXT, re.MULTILINE))
    assert {"run", "resume", "report", "config", "list", "doctor"} <= named <= set(cli.commands)


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links), links
