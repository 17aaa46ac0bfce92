"""`sparsetrain plan`: what it prints, and what it refuses."""

import json

import pytest
from click.testing import CliRunner

from sparsetrain.cli import cli
from sparsetrain.collective.transport import Alone
from sparsetrain.collective.world import World
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.engine.state import build
from sparsetrain.plan.cluster import cluster_of, load_cluster
from sparsetrain.plan.memory import memory_of
from sparsetrain.plan.model import model_of

FAST = ("--set", "compute_s=0.05")


def planned(*words: str) -> dict:
    found = CliRunner().invoke(cli, ["plan", *FAST, *words, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.output)


def test_a_slow_link_wants_compression_and_a_fast_one_none():
    slow = planned("text_gpt", "exchange.every=1", "--set", "network.rate=10mbit")
    assert slow["chosen"] != "dense"
    ways = {way["way"]: way for way in slow["ways"]}
    assert ways["dense"]["step_ms"] > 5 * ways[slow["chosen"]]["step_ms"]
    assert ways["dense"]["exposed_ms"] == pytest.approx(ways["dense"]["step_ms"] - 50)
    assert set(ways) > {"dense", "lowrank", "allgather", "ok_topk", "gtopk", "recursive_doubling", "hierarchical"}
    fast = planned(
        "text_gpt", "exchange.every=1", "--set", "network.rate=none", "--set", "compute_s=2", "--set", "nodes=2"
    )
    assert fast["chosen"] == "dense" and "Train dense" in fast["said"][0]


def test_engines_that_gather_weights_are_said_to_do_so():
    said = planned("text_gpt", "exchange.every=1", "engine.name=deepspeed", "engine.stage=1", "--set", "nodes=2")[
        "said"
    ]
    assert "engine.stage: 1 gathers dense weights in every step, on top of all this; torch and stage 0 do not." in said
    assert not any(
        "gathers" in line
        for line in planned("text_gpt", "exchange.every=1", "engine.name=deepspeed", "--set", "nodes=2")["said"]
    )


def test_steps_to_the_same_loss_count():
    lossy = ("text_gpt", "exchange.every=1", 'exchange.steps_factor={"sparse": 50, "lowrank": 50}')
    assert planned(*lossy, "--set", "network.rate=100mbit")["chosen"] == "dense"


def test_masks_bring_packed_which_loses_nothing():
    found = planned("text_gpt", "exchange.every=1", "masks.method=static", "masks.sparsity=0.9", "--set", "nodes=2")
    packed = next(way for way in found["ways"] if way["way"] == "packed")
    dense = next(way for way in found["ways"] if way["way"] == "dense")
    assert packed["lossless"] and packed["mb_a_step"] < 0.4 * dense["mb_a_step"]


def test_prices_failures_memory_and_the_grid_are_in_the_words():
    words = [
        "text_gpt",
        "--set",
        "network.rate=50mbit",
        "--set",
        "price=2",
        "--set",
        "failures.node_hours=100",
        "--set",
        "memory_gb=0.001",
        "--set",
        "stragglers.factor=2",
        "--set",
        "stragglers.share=0.5",
        "--what-if",
    ]
    found = CliRunner().invoke(cli, ["plan", *words, *FAST], catch_exceptions=False)
    assert found.exit_code == 0
    for word in ("price", "goodput", "does not fit", "nodes", "10 Gbit/s", "Take exchange.regime"):
        assert word in found.output
    assert "ms of the slowest worker" in found.output and "a node costs 2 an hour" in found.output


def test_the_plan_sees_the_buckets_that_the_exchange_makes():
    job = load_job("text_gpt", ("masks.method=rigl", "masks.sparsity=0.9", "exchange.bucket_elements=200000"))
    model = model_of(job)
    state = build(job, World(transport=Alone()))
    channels = state.exchange.channels[::-1]
    assert [part.size for part in model.parts] == [channel.bucket.size for channel in channels]
    assert [part.active for part in model.parts] == [channel.size for channel in channels]
    assert model.small == state.exchange.small.bucket.size
    kept = sum(value.nelement() for key, value in state.exchange.state().items() if key.startswith("residual"))
    assert memory_of(job, model, "sparse")["residual"] == 4 * kept
    state.exchange.close()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"nodez": 2}, r"^cluster: nodez: unknown key .*did you mean 'nodes'"),
        ({"network": {"rate": "fast"}}, r"^cluster: network.rate: rate 'fast': want a whole number"),
        ({"nodes": 0}, r"^cluster: nodes: "),
        ({"above": [{"name": "rack"}]}, r"^cluster: above.0.joins: is missing"),
        ({"network": {"latency": 1}}, r"^cluster: network.latency: unknown key .*latency_s"),
    ],
)
def test_mistakes_in_a_cluster_are_one_line(given, line):
    with pytest.raises(JobError, match=line):
        cluster_of(given)


def test_files_that_are_no_cluster(tmp_path):
    with pytest.raises(JobError, match=r"^--cluster .*none.yaml: cannot be read: No such file"):
        load_cluster(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(JobError, match="holds a mapping, not list"):
        load_cluster(str(tmp_path / "list.yaml"))


def test_levels_above_the_nodes_share_their_links():
    above = [{"name": "rack", "joins": 4, "rate": "40gbit"}, {"name": "site", "joins": 2, "rate": "1gbit"}]
    cluster = cluster_of({"nodes": 16, "workers_per_node": 2, "above": above})
    fabric = cluster.fabric()
    assert [level.members for level in fabric.levels] == [2, 4, 2, 2]
    assert fabric.ranks == cluster.workers == 32 and cluster.groups() == [8, 16]
