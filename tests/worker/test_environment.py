from __future__ import annotations

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.worker.environment import Place, from_environment, from_torchrun

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


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
