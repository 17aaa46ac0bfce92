"""A whole run on Ray with its checkpoints on a real S3 server, and the verbs that look after them."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from commands import Desk
from s3_server import BUCKET, MISSING, s3_server

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
RUN = (
    "sparsetrain",
    "run",
    "job.yaml",
    f"checkpoint.url=s3://{BUCKET}/runs",
    "checkpoint.every=2",
    "checkpoint.best=1",
)
SECRET = "a-test-secret"


def test_saved_resumed_elsewhere_verified_and_pruned(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = desk.call(*RUN, "checkpoint.timeout=5")
    assert (code, err.count("\n")) == (2, 1) and err.startswith("checkpoints: s3://bucket/runs/tiny failed, listing")
    assert not (desk.folder / "runs").exists()
    with s3_server() as (variables, _):
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
        code, _, err = desk.call(*RUN)
        assert code == 0, err
        assert not (desk.folder / "runs/tiny/checkpoints").exists()
        shutil.rmtree(desk.folder / "runs")  # as if it were another machine
        code, _, err = desk.call(*RUN, "train.batch_size=8")
        assert code == 2 and "train.batch_size: is 8 here and 4 in the run; s3://bucket/runs/tiny holds" in err
        code, out, err = desk.call(*RUN, "train.steps=12", "--json")
        assert code == 0, err
        assert json.loads(out)["runs"][0]["result"]["steps"] == 12
        printed = [path.read_text(errors="replace") for path in (desk.folder / "runs").rglob("*") if path.is_file()]
        assert any("resumed from step_00000008" in text for text in printed)
        assert not any(SECRET in text for text in [*printed, out, err])
        code, out, _ = desk.call("sparsetrain", "checkpoints", "list", "tiny", "--json")
        rows = json.loads(out)["checkpoints"]
        assert [row["step"] for row in rows][-2:] == [10, 12] and all(row["world_size"] == 2 for row in rows)
        code, out, _ = desk.call("sparsetrain", "checkpoints", "verify", "tiny")
        assert (code, out.count(": whole\n")) == (0, len(rows))
        code, out, _ = desk.call("sparsetrain", "checkpoints", "prune", "tiny", "--keep", "1", "--best", "0")
        assert code == 0 and "removed step_00000010" in out
        code, out, _ = desk.call("sparsetrain", "checkpoints", "list", "tiny", "--json")
        assert [row["step"] for row in json.loads(out)["checkpoints"]] == [12]
    assert desk.left() == {}
