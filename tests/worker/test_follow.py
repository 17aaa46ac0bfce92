from __future__ import annotations

import pathlib

from sparsetrain.worker.follow import Follower


def test_rows_come_once_and_only_when_complete(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.rows() == []
    path.write_text('{"train/step": 1}\n{"train/st')
    assert follower.rows() == [{"train/step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert follower.rows() == [{"train/step": 2}]
    assert follower.rows() == []


def test_rows_of_an_earlier_attempt_are_not_shown_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"train/step": 1}\n{"train/step": 2}\n')
    follower = Follower(path)
    assert follower.rows() == []
    beside = tmp_path / "beside"
    beside.write_text('{"train/step": 1}\n{"train/step": 2, "train/loss": 3.0}\n')
    beside.replace(path)
    assert follower.rows() == [{"train/step": 2, "train/loss": 3.0}]
