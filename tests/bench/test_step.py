"""Whole training steps over real ranks: every candidate trains, bytes shrink where they should, mistakes are told."""

from __future__ import annotations

import json

import pytest

from sparsetrain.bench.hosts import Hosts
from sparsetrain.bench.ranks import Ranks
from sparsetrain.bench.step import COLUMNS, IDEAL, Plan, measure, show
from sparsetrain.bench.step_rank import OURS, job_of
from sparsetrain.cli import main

SMALL = {"layers": 1, "width": 64, "vocabulary": 256, "context": 16, "batch": 1, "steps": 2, "rounds": 1}


@pytest.mark.timeout(110)
def test_loopback_ranks_fill_all_rows():
    result = measure(Ranks(hosts=2, rate="none", loopback=True, limit_s=90), Plan(**SMALL))
    rows = {each["name"]: each for each in result["rows"]}
    assert {IDEAL, "DDP dense fp32", "DDP PowerSGD 4", *OURS} <= set(rows)
    assert all(set(each) == set(COLUMNS) and each["seconds"] > 0 for each in rows.values())
    assert rows[IDEAL]["share_of_compute"] == 1 and rows[IDEAL]["interface_bytes"] is None
    job = job_of(Plan(**SMALL))
    assert result["weights"] == sum(p.numel() for p in job.model.build().parameters())
    json.dumps(result)
    assert show(result).count("\n") == 1 + len(rows)


@pytest.mark.netns
@pytest.mark.timeout(110)
def test_sparse_steps_send_less_than_dense_ones():
    if reason := Hosts.missing():
        pytest.skip(reason)
    result = measure(Ranks(hosts=2, rate="none", limit_s=90), Plan(**SMALL | {"width": 128, "steps": 10}))
    sent = {each["name"]: each["interface_bytes"] for each in result["rows"]}
    assert sent[IDEAL] < 2000
    assert sent["DDP dense fp32"] > 4 * result["weights"]  # a ring of two: every weight once
    assert sent["DDP dense fp32"] > 1.8 * sent["DDP fp16 hook"] > 3 * sent["topk bf16"]
    assert sent["topk bf16"] > sent["topk int8"] > sent["local steps 10"]


def test_local_steps_send_the_same_share_less_often():
    job = job_of(Plan(density=0.02), OURS["local steps 10"])
    assert (job.exchange.every, job.exchange.density, job.train.batch_size) == (10, 0.2, 4)
    assert job_of(Plan(density=0.5), OURS["local steps 10"]).exchange.density == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hosts", "1"], "at least 2 hosts"),
        (["--batch", "0"], "counts of at least 1"),
        (["--density", "2"], "density in (0, 1]"),
        (["--loopback", "--rate", "1gbit"], "loopback has no rate"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "step", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said in err and err.count("\n") == 1
