import dataclasses

import pytest

from sparsetrain.config.defaults import EVALUATE, settle
from sparsetrain.config.job import Train
from sparsetrain.config.load import parse


@pytest.mark.parametrize(
    ("extra", "every"),
    [
        ({}, 5),
        ({"optimizer": "adamw"}, 5),
        ({"exchange": {"regime": "sparse", "indices": "int32"}}, 5),
        ({"checkpoint": {"every": 50}}, 5),
        ({"checkpoint": {"every": 6}}, 2),
        ({"checkpoint": {"every": 6}, "train": {"evaluate_every": 60}}, 6),
        ({"train": {"steps": 4}}, 4),
    ],
)
def test_adamw_takes_as_many_local_steps_as_the_boundaries_allow(extra, every):
    job = parse({"name": "one", **extra})
    assert (job.exchange.every, job.exchange.density) == (every, pytest.approx(0.01 * every))


@pytest.mark.parametrize(
    "extra",
    [
        {"optimizer": "sgd"},
        {"optimizer": {"name": "sgd", "momentum": 0.0}},
        {"exchange": {"density": 0.01}},
        {"exchange": {"every": 1}},
        {"exchange": {"regime": "packed"}},
        {"exchange": {"regime": "dense", "values": "fp32"}},
        {"checkpoint": {"every": 7}},
        {"train": {"steps": 1}},
    ],
)
def test_other_jobs_exchange_in_every_step(extra):
    tree = {"name": "one", **extra}
    assert settle(tree) is tree
    assert parse(tree).exchange.every == 1


@pytest.mark.parametrize("tree", [{"exchange": "often"}, {"exchange": None}, {"optimizer": 3}])
def test_what_is_malformed_is_left_to_the_check(tree):
    assert settle(tree) is tree


@pytest.mark.parametrize("tree", [{"train": 3}, {"train": {"steps": "many"}}, {"checkpoint": {"every": None}}])
def test_a_malformed_boundary_counts_as_not_named(tree):
    assert settle(tree)["exchange"]["every"] == 5


def test_the_boundary_that_every_job_has_is_the_jobs_own_default():
    assert {field.name: field.default for field in dataclasses.fields(Train)}["evaluate_every"] == EVALUATE


@pytest.mark.parametrize(
    ("extra", "sparse"),
    [
        ({"exchange": {"regime": "auto"}}, 3.0),
        ({"optimizer": "sgd", "exchange": {"regime": "auto"}}, 1.1),
        ({"exchange": {"regime": "auto", "every": 5}}, None),
        ({"exchange": {"regime": "auto", "steps_factor": {"lowrank": 2.0}}}, None),
        ({"optimizer": "sgd", "exchange": {"regime": "packed"}}, None),
    ],
)
def test_auto_knows_what_a_lossy_step_is_worth(extra, sparse):
    assert parse({"name": "one", **extra}).exchange.steps_factor.get("sparse") == sparse
