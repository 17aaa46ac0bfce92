from __future__ import annotations

from typing import Any

from sparsetrain.launch.failure import Failure, account, root_cause


def failure(rank: int, kind: Any, at: float, **more: str) -> Failure:
    return Failure(rank=rank, host="h", node="n", pid=1, kind=kind, message=more.pop("message", "m"), at=at, **more)


def echo(rank: int, at: float) -> Failure:
    return failure(rank, "error", at, type="RuntimeError", message="[gloo] Connection closed by peer [127.0.0.1]:1")


def test_a_lost_process_explains_the_errors_of_its_neighbours() -> None:
    assert root_cause([echo(0, 1.0), echo(2, 1.1), failure(1, "died", 1.5)]).rank == 1


def test_an_own_exception_explains_the_echo_that_came_first() -> None:
    assert root_cause([echo(0, 1.0), failure(1, "error", 2.0, type="ValueError")]).rank == 1


def test_of_equals_the_first_in_time() -> None:
    assert root_cause([failure(0, "error", 2.0), failure(1, "error", 1.0)]).rank == 1


def test_one_line_names_rank_host_and_cause() -> None:
    line = failure(1, "error", 0.0, type="ValueError", message="boom\nmore").line()
    assert line == "rank 1 on h (node n, process 1) failed: ValueError: boom"


def test_an_account_names_all_that_died() -> None:
    failures = [failure(3, "died", 2.0), failure(1, "died", 1.0), echo(0, 1.1), failure(2, "died", 1.0)]
    assert account(failures) == f"{failures[1].line()}; also lost: rank 2 on h, rank 3 on h"
    assert account(failures[2:3]) == failures[2].line()
