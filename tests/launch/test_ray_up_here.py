"""`ray up` for real, on a machine that is this one: in namespaces of its own, with an ssh and rsync that stay here."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from commands import JOB, Desk

# As ssh: all after the host is words for a shell there.
SSH = """#!/bin/bash
while [ $# -gt 0 ] && [[ "$1" != *@127.0.0.1 ]]; do shift; done
shift
exec bash -c "$*"
"""
RSYNC = """#!{python}
import pathlib, shutil, sys
source, target = pathlib.Path(sys.argv[-2]), sys.argv[-1].split(":", 1)[1]
place = pathlib.Path.home() / target.removeprefix("~/")
if target.endswith("/"):
    place /= source.name
place.parent.mkdir(parents=True, exist_ok=True)
shutil.copytree(source, place, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, place)
"""
# Nothing answers ssh's port in the new network before this does.
INSIDE = """
set -e
ip link set lo up
{python} -c 'import socket, time; server = socket.create_server(("127.0.0.1", 22)); time.sleep(600)' &
sleep 0.5
{python} -m sparsetrain launch job.yaml --on ray_cluster cluster.launcher.head_ip=127.0.0.1 \
    cluster.launcher.ssh_user=me cluster.launcher.python={python} < /dev/null
"""
NEEDS = ("unshare", "ip")
LACKING = [name for name in NEEDS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.timeout(400),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="namespaces need Linux and root"),
    pytest.mark.skipif(bool(LACKING), reason=f"there is no {LACKING}"),
]


def put(path: pathlib.Path, text: str) -> None:
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(0o755)


def test_a_cluster_comes_up_behind_a_token_and_trains(tmp_path: pathlib.Path) -> None:
    desk = Desk(tmp_path)
    home, programs = tmp_path / "home", tmp_path / "bin"
    (home / ".ray").mkdir(parents=True)
    programs.mkdir()
    put(programs / "ssh", SSH)
    put(programs / "rsync", RSYNC)
    token = "made-up-for-this-test-made-up-for-this-test"
    (home / ".ray/auth_token").write_text(token)
    path = f"{programs}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    (home / ".bash_profile").write_text(f"export PATH={path}\n")
    (home / ".bashrc").touch()
    (tmp_path / "job.yaml").write_text(JOB.replace("text.txt", f"{tmp_path}/text.txt"))
    cache = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")  # kernels are compiled already
    env = {**desk.env(), "HOME": str(home), "PATH": path, "XDG_CACHE_HOME": cache, "RAY_TMPDIR": f"{desk.temporary}/r"}
    (desk.temporary / "r").mkdir()
    inside = ["unshare", "--pid", "--fork", "--net", "--mount-proc", "--kill-child", "bash", "-c"]
    script = INSIDE.replace("{python}", sys.executable)
    # Its output goes to a file: what Ray starts keeps it open.
    with (tmp_path / "said").open("w") as said:
        done = subprocess.run([*inside, script], cwd=tmp_path, env=env, stdout=said, stderr=said, timeout=350)
    assert done.returncode == 0, (tmp_path / "said").read_text()[-5000:]
    assert json.loads((home / "runs/tiny/run.json").read_text())["status"] == "finished"
    for kept in (*(tmp_path / "runs").rglob("*"), tmp_path / "said", home / "ray_bootstrap_config.yaml"):
        assert kept.is_dir() or token not in kept.read_text()
    assert desk.left() == {}
    shutil.rmtree(desk.temporary)
