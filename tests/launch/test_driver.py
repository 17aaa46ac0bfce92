from __future__ import annotations

import signal

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import parse
from sparsetrain.launch.plan import ray_plan
from sparsetrain.launch.ray_cluster import refuse_silent, secure
from sparsetrain.launch.ray_driver import ranked
from sparsetrain.launch.ray_group import Member, forwarded
from sparsetrain.launch.signals import Stopped, listening, undisturbed


def member(node: str, address: str, pid: int) -> Member:
    return Member(actor=None, node=node, address=address, host=node, pid=pid, shared=True)


def test_ranks_are_contiguous_on_each_node_and_begin_here() -> None:
    members = [member("b", "10.0.0.2", 1), member("a", "10.0.0.1", 2), member("b", "10.0.0.2", 3)]
    found = [(m.node, m.rank, m.local_rank) for m in ranked(members, "b")]
    assert found == [("b", 0, 0), ("b", 1, 1), ("a", 2, 0)]


def test_two_nodes_on_one_address_are_two_nodes() -> None:
    members = [member(node, "127.0.0.1", pid) for pid, node in enumerate("abab")]
    assert [(m.node, m.local_rank) for m in ranked(members, "")] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_an_own_cluster_gets_a_fresh_token_and_keeps_a_given_one() -> None:
    env: dict[str, str] = {}
    secure(env)
    assert env["RAY_AUTH_MODE"] == "token"
    assert len(env["RAY_AUTH_TOKEN"]) == 64
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    given = {"RAY_AUTH_TOKEN": "given"}
    secure(given)
    assert given["RAY_AUTH_TOKEN"] == "given"
    empty = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": ""}
    secure(empty)
    assert empty["RAY_AUTH_MODE"] == "token" and len(empty["RAY_AUTH_TOKEN"]) == 64


def test_a_token_that_ray_cannot_send_and_a_file_without_one_are_refused(tmp_path) -> None:
    (tmp_path / "token").write_text("\n")
    for variables, said in (
        ({"RAY_AUTH_TOKEN": "bad\ntoken x"}, "RAY_AUTH_TOKEN: holds no token"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, "RAY_AUTH_TOKEN_PATH: .*none cannot be read"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}, "RAY_AUTH_TOKEN_PATH: holds no token"),
    ):
        with pytest.raises(JobError, match=said):
            secure(dict(variables))
    (tmp_path / "token").write_text("abc\n")
    secure({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})


def test_the_plan_holds_names_of_variables_but_no_values() -> None:
    plan = ray_plan(parse({"name": "one"}), {"WANDB_API_KEY": "secret", "HOME": "/h"})
    assert plan.environment == ("WANDB_API_KEY",)
    assert "secret" not in str(plan.as_dict()) + plan.line()


def test_only_what_a_foreign_worker_needs_is_forwarded() -> None:
    assert forwarded({"WANDB_PROJECT": "p", "RAY_AUTH_TOKEN": "t", "HOME": "/h"}) == {"WANDB_PROJECT": "p"}


def test_a_silent_address_is_refused_at_once() -> None:
    with pytest.raises(JobError, match=r"^cluster\.address: no Ray cluster answers at '127\.0\.0\.1:1'"):
        refuse_silent("127.0.0.1:1")


def test_the_first_signal_is_a_flag_and_the_second_an_exception() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            stop.check()
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_machine_cannot_be_two_nodes() -> None:
    job = parse({"name": "one", "cluster": {"strategy": "STRICT_SPREAD"}})
    with pytest.raises(JobError, match=r"^cluster\.strategy: STRICT_SPREAD needs 2 nodes"):
        ray_plan(job)
    elsewhere = parse({"name": "one", "cluster": {"strategy": "STRICT_SPREAD", "address": "auto"}})
    assert ray_plan(elsewhere).address == "auto"


def test_ranks_of_ray_do_not_talk_over_mpi() -> None:
    with pytest.raises(JobError, match=r"^cluster\.transport: mpi needs ranks that mpiexec has started"):
        ray_plan(parse({"name": "one", "cluster": {"transport": "mpi"}}))
