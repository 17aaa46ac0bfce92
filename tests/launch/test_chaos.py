"""What the chaos verb draws, counts and refuses."""

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.launch.chaos import Plan, Row, run_chaos, summary
from sparsetrain.launch.monkey import FAULTS, plan, plan_every


def test_the_same_seed_draws_the_same_faults_and_another_others():
    kinds = tuple(FAULTS)
    assert plan(7, 3, kinds, 4, 10.0) == plan(7, 3, kinds, 4, 10.0) != plan(8, 3, kinds, 4, 10.0)
    drawn = plan(7, 3, kinds, 50, 10.0)
    assert [fault.at for fault in drawn] == sorted(fault.at for fault in drawn)
    assert all(0 <= fault.at < 10 and 0 <= fault.whom < 1 and fault.kind in kinds for fault in drawn)
    assert [fault.at for fault in plan_every(1, 0, ("kill",), 60.0, 3)] == [60.0, 120.0, 180.0]


def test_an_unknown_fault_is_refused_with_the_near_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = Plan(seed=0, faults=("kil",), runs=1, count=1, undisturbed=1)
    with pytest.raises(JobError, match=r"^--faults: kil: no such fault; allowed: kill, .*did you mean 'kill'"):
        run_chaos("quickstart", (), told, False)


def test_faults_are_counted_or_come_at_a_pace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = Plan(seed=0, faults=("kill",), runs=1, count=2, every=1.0, undisturbed=1)
    with pytest.raises(JobError, match=r"^--count 2: a fault comes every 1 s already; allowed: one of the two"):
        run_chaos("quickstart", (), told, False)


def row(fault, **changes):
    """Return a run that went well, but for the changes."""
    well = {"status": "finished", "seconds": 8, "recovered": [2.0], "sources": ["memory"], "loss": 1.0}
    return Row(name="run0000", faults=[f"{fault} rank 1 at step 3"], **{**well, **changes})


def test_the_table_counts_what_is_wrong_apart():
    rows = [
        row("kill"),
        row("kill", recovered=[4.0], wrong="workers left: [7]"),
        row("stop", status="hung", recovered=[], loss=None, wrong="hung: None"),
        row("cut", recovered=[1.0], goodput=0.5, wrong="loss 9"),
    ]
    lines = summary(rows).splitlines()
    assert lines[1].split() == ["kill", "2", "2", "1", "3.0", "4.0"]
    assert lines[-2] == "goodput, recovery in memory: median 1.00, least 0.50"
    assert lines[-1] == "4 runs: 1 hung, 1 left something behind, 1 otherwise wrong"
