from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.worker.environment import (
    Place,
    first_host,
    from_environment,
    from_torchrun,
    launcher,
    rank_of,
    starter,
)

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURMD_NODENAME": "gpu08",
}


def test_reads_what_torchrun_sets() -> None:
    place = from_torchrun(TORCHRUN)
    assert (place.rank, place.size, place.local_rank) == (3, 4, 1)
    assert (place.master_addr, place.master_port) == ("10.0.0.1", 29500)


def test_variables_are_what_torchrun_would_set() -> None:
    assert from_torchrun(TORCHRUN).variables() == TORCHRUN


def test_a_process_without_launcher_is_a_world_of_one() -> None:
    place = from_environment({"PATH": "/bin"})
    assert (place.rank, place.size, place.local_rank) == (0, 1, 0)


@pytest.mark.parametrize("key", sorted(TORCHRUN))
def test_a_missing_variable_is_named(key: str) -> None:
    env = {name: value for name, value in TORCHRUN.items() if name != key}
    with pytest.raises(JobError, match=f"^{key}: not set"):
        from_torchrun(env)


SLOWLY = [pytest.param(each, marks=pytest.mark.slow) for each in ({"RANK": "x"}, {"LOCAL_RANK": "7"})]


@pytest.mark.parametrize("wrong", [{"RANK": "9"}, *SLOWLY])
def test_a_rank_that_alone_is_told_nonsense_says_so(wrong: dict[str, str], tmp_path: pathlib.Path) -> None:
    worker = [sys.executable, "-m", "sparsetrain.worker", "quickstart"]
    env = {**os.environ, **TORCHRUN, **wrong}
    done = subprocess.run(worker, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"rank {env['RANK']}: {next(iter(wrong))}: ") and not list(tmp_path.iterdir())


def test_half_a_launcher_is_not_taken_for_none() -> None:
    with pytest.raises(JobError, match=r"^RANK: not set"):
        from_environment({"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("RANK", "x"), ("RANK", "4"), ("RANK", "-1"), ("LOCAL_RANK", "9"), ("MASTER_PORT", "0"), ("MASTER_PORT", "70000")],
)
def test_a_wrong_value_is_named(key: str, value: str) -> None:
    with pytest.raises(JobError, match=f"^{key}: must be"):
        from_torchrun({**TORCHRUN, key: value})


def test_a_place_can_be_given_outright() -> None:
    assert Place(rank=1, size=2, master_port=1).variables()["RANK"] == "1"


def test_reads_what_srun_sets() -> None:
    place = from_environment(SLURM)
    assert (place.rank, place.size, place.local_rank, place.node) == (2, 4, 1, "gpu08")
    assert place.master_addr == "gpu07"
    assert place.master_port == from_environment({**SLURM, "SLURM_PROCID": "0"}).master_port
    assert place.master_port != from_environment({**SLURM, "SLURM_JOB_ID": "13"}).master_port
    assert from_environment({**SLURM, "MASTER_PORT": "1234", "MASTER_ADDR": "10.0.0.1"}).master_addr == "10.0.0.1"


@pytest.mark.parametrize("key", ["SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"])
def test_a_missing_variable_of_srun_is_named(key: str) -> None:
    with pytest.raises(JobError, match=f"^{key}: not set in the environment; srun sets"):
        from_environment({name: value for name, value in SLURM.items() if name != key})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node", "node"),
        ("node0,node1", "node0"),
        ("node[03-07,9],other", "node03"),
        ("rack1-[2,4]-ib,x", "rack1-2-ib"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize("hosts", ["[", "node[a-b]", "node[1-2", ",x"])
def test_a_list_that_is_not_understood(hosts: str) -> None:
    with pytest.raises(JobError, match=r"^SLURM_STEP_NODELIST: not a list of hosts"):
        first_host(hosts)


@pytest.mark.parametrize(
    ("env", "who", "rank"),
    [
        ({}, "process", "0"),
        (TORCHRUN, "torchrun", "3"),
        ({**TORCHRUN, **SLURM}, "torchrun", "3"),  # torchrun on each node of a job
        (SLURM, "slurm", "2"),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "12"}, "process", "0"),  # the batch script itself
        ({"PMI_RANK": "5", "PMI_SIZE": "8"}, "mpi", "5"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "mpi", "1"),
        ({**SLURM, "PMI_RANK": "2", "PMI_SIZE": "4"}, "slurm", "2"),  # srun --mpi=pmi2
        ({**SLURM, "PMIX_RANK": "2"}, "slurm", "2"),  # srun --mpi=pmix
        ({**SLURM, "PMI_RANK": "2", "PMI_SIZE": "8"}, "mpi", "2"),  # mpiexec started its proxies by srun
    ],
)
def test_who_started_this_process(env: dict[str, str], who: str, rank: str) -> None:
    assert (launcher(env), rank_of(env)) == (who, rank)


def test_deepspeeds_launcher_is_told_from_torchrun():
    env = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert (launcher(env), starter(env)) == ("torchrun", "torchrun")
    assert starter({**env, "CROSS_RANK": "0"}) == "deepspeed"
    assert starter({}) == "process"
