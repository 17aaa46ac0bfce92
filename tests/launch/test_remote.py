"""`sparsetrain watch HOST:FOLDER`: what ssh is asked for, and what comes of its answers."""

from __future__ import annotations

import pathlib
import sys

import pytest
from run_folders import write_run

from sparsetrain.cli import main
from sparsetrain.config.load import parse, to_yaml
from sparsetrain.launch import remote

# What ssh does once it is there: the words behind the host are one command for a shell in the home folder.
SSH = """#!/bin/sh
printf '%s\\n' "$@" > "{home}/asked"
while [ "$1" != -- ]; do shift; done
[ "$2" = away ] && exit 255
shift 2
cd "{home}" && exec sh -c "$*"
"""


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    made = write_run(tmp_path / "my runs/one")
    (made / "job.yaml").write_text(to_yaml(parse({"name": "one"})))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH.format(home=tmp_path))
    (tmp_path / "bin/ssh").chmod(0o755)
    (tmp_path / "bin/program").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sparsetrain "$@"\n')
    (tmp_path / "bin/program").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(remote.__file__).parent.parent.parent))
    return tmp_path


def watch(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["watch", *words])
    return int(ended.value.code or 0)


def test_a_run_of_another_host_is_shown_by_the_program_there(home, capfd):
    assert watch("me@far:my runs/one", "--once", "--program", "program") == 0
    assert capfd.readouterr().out.startswith("one  finished\n")
    asked = (home / "asked").read_text().splitlines()
    assert asked[0] == "-T" and asked[-3:-1] == ["--", "me@far"] and "ConnectTimeout=15" in asked


def test_its_exit_code_and_its_line_come_back(home, capfd):
    assert watch("far:my runs/two", "--program", "program") == 2
    assert "two: no such run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ("away:one", "away: ssh cannot reach it"),
        ("far:one", "far: its shell finds no sparsetrain; allowed: --program with the path of sparsetrain there"),
    ],
)
def test_no_way_there_is_one_line(home, capfd, run, line):
    assert watch(run) == 2
    assert line in capfd.readouterr().err


def test_without_ssh_it_says_so(home, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(home))
    assert watch("far:one") == 2
    assert capfd.readouterr().err == "far: there is no ssh on the PATH to reach it with\n"


@pytest.mark.parametrize("run", ["one", "runs/one", "-oProxyCommand=x:y", "s3://bucket/run", "a/b:c", ":x", "x:"])
def test_what_names_no_host_is_no_place(run):
    assert remote.split(run) is None
    assert remote.split("node-7:/runs/one") == ("node-7", "/runs/one")


def test_a_folder_is_a_word_whatever_is_in_it(home, capfd):
    assert watch("far:$(touch gone); x", "--program", "program") == 2
    assert not (home / "gone").exists()
