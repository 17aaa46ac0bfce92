"""A pipe or a folder in place of a run folder's files is not waited for."""

import os

import pytest

from sparsetrain.launch.sweep import _index
from sparsetrain.track.jsonl import read
from sparsetrain.worker.existing import status, stored_tree


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_reads_as_nothing(tmp_path, make):
    for name in ("run.json", "metrics.jsonl", "job.yaml", "sweep.json"):
        make(tmp_path / name)
    assert status(tmp_path) == {} and read(tmp_path / "metrics.jsonl") == [] and stored_tree(tmp_path) is None
    assert _index(tmp_path) == {}
