import subprocess

import pytest
import yaml

from sparsetrain.config.errors import JobError
from sparsetrain.launch.wandb_sweep import export

AXES = ("masks.method=set,rigl", "optimizer.learning_rate=1e-4,0.001", "train.steps=40")


def test_the_grid_is_a_sweep_of_wandb():
    tree = yaml.safe_load(export("quickstart", AXES, 3, None))
    assert tree["method"] == "grid" and tree["metric"] == {"name": "eval/loss.min", "goal": "minimize"}
    assert tree["parameters"] == {
        "masks.method": {"values": ["set", "rigl"]},
        "optimizer.learning_rate": {"values": ["1e-4", 0.001]},
        "seed": {"values": [0, 1, 2]},
    }


def test_the_command_of_the_agent_runs_a_cell_under_the_id_that_it_was_given(tmp_path):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    tree = yaml.safe_load(export("quickstart", AXES, 1, "try"))
    values = {"masks.method": "rigl", "optimizer.learning_rate": 0.001, "seed": 0}
    words = utils.create_sweep_command(tree["command"])
    given = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    command = []
    for word in words:
        command += given["args_no_hyphens"] if word == "${args_no_hyphens}" else [word]
    (tmp_path / "sparsetrain").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "sparsetrain").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "WANDB_RUN_ID": "abc12345"}
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "run",
        "quickstart",
        "train.steps=40",
        "log.folder=runs/try",
        "log.wandb.mode=online",
        "masks.method=rigl",
        "optimizer.learning_rate=0.001",
        "seed=0",
        "name=cell-abc12345",
    ]


def test_a_grid_that_is_none_is_refused():
    with pytest.raises(JobError, match=r"^masks\.method"):
        export("quickstart", ("masks.method=set,nothing",), 1, None)
