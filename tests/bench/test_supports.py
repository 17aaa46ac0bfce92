import json

import pytest
from click.testing import CliRunner

from sparsetrain.bench import scaling
from sparsetrain.bench.supports import COLUMNS, Plan, measure, rows
from sparsetrain.cli import cli
from sparsetrain.config.load import load_job
from sparsetrain.plan.fill import recorded

TINY = ("model.width=32", "model.layers=1", "train.batch_size=2")


def test_ranks_that_train_together_choose_the_same_places_more_often_than_chance_would():
    found = measure(load_job("text_gpt", TINY), Plan(ranks=8, steps=4, density=0.02))
    assert found.ranks == 8 and len(found.counts) == 9
    assert found.density == pytest.approx(0.02, rel=0.01)
    table = rows(found)
    assert set(table[0]) == set(COLUMNS)
    assert all(row["union"] <= row["random"] * 1.001 for row in table)
    assert table[2]["share_of_random"] < 0.95
    assert [row["union"] for row in table] == sorted(row["union"] for row in table)


def test_the_record_feeds_plan_and_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "LOOKS", 1)  # at this processor: a second or two each
    path = tmp_path / "supports.json"
    words = ["bench", "supports", "text_gpt", *TINY, "--ranks", "4", "--steps", "2", "--out", str(path)]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    assert recorded(path).ranks == 4
    words = ["bench", "scaling", "--ranks", "4", "--ranks", "64", "--supports", str(path), "--json"]
    real = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).output)
    random = json.loads(CliRunner().invoke(cli, [*words[:6], "--json"], catch_exceptions=False).output)
    assert real[1]["recursive_doubling"] < random[1]["recursive_doubling"]
