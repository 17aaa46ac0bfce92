"""The exchange over real ranks: rows are whole, bytes agree with formulas and with the interface, failures are told."""

from __future__ import annotations

import json
import pathlib
import tempfile

import mpi_ranks
import pytest
import torch
from ranks import gloo_ranks

from sparsetrain.bench import namespaces
from sparsetrain.bench.candidates import SPARSE, Dense, Naive, Ours, PowerSGD
from sparsetrain.bench.exchange import COLUMNS, GOODPUT, Plan, measure, row
from sparsetrain.bench.hosts import Hosts
from sparsetrain.bench.rank import sent_bytes
from sparsetrain.bench.ranks import RankFailed, Ranks
from sparsetrain.bench.synthetic import Gradient
from sparsetrain.cli import main
from sparsetrain.collective.transport import Alone

NAMES = ["dense fp32", "dense bf16", "naive topk", "powersgd rank 4", *SPARSE]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "exchange", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def folders() -> set[pathlib.Path]:
    return set(pathlib.Path(tempfile.gettempdir()).glob("sparsetrain-bench-*"))


@pytest.mark.timeout(110)
def test_loopback_ranks_fill_all_rows(capsys):
    before = folders()
    wanted = ("--hosts", "2", "--size", "2e5", "--density", "0.05", "--rounds", "1", "--loopback", "--limit", "90")
    code, out, err = bench(capsys, *wanted, "--json")
    assert code == 0, err
    result = json.loads(out)
    rows = {each["name"]: each for each in result["rows"]}
    assert list(rows) == NAMES
    assert all(set(each) == set(COLUMNS) for each in rows.values())
    assert result["n"] == 200_000 and result["latency_s"] > 0
    assert rows["dense fp32"]["speedup_over_fp32"] == rows["dense bf16"]["speedup_over_bf16"] == 1
    assert all(each["seconds"] > 0 and each["speedup_over_bf16"] > 0 for each in rows.values())
    assert all(each["bound_s"] is each["interface_bytes"] is each["predicted_s"] is None for each in rows.values())
    sent = {name: each["payload_bytes"] for name, each in rows.items()}
    k = 10_000
    assert sent["dense fp32"] == 4 * 200_000 and sent["dense bf16"] == 2 * 200_000
    assert sent["naive topk"] == 12 * k
    assert sent["powersgd rank 4"] == 4 * 4 * (1000 + 200)
    assert 6 * k < sent["allgather int32 bf16"] < 6 * k + 100
    assert sent["allgather auto int8"] < sent["allgather auto bf16"] < sent["allgather int32 bf16"]
    assert 2 * k < sent["packed randomk bf16"] < 2 * k + 200
    assert folders() == before


@pytest.mark.timeout(110)
def test_mpi_ranks_fill_all_rows_with_the_same_bytes(capsys):
    if reason := mpi_ranks.missing():
        pytest.skip(reason)
    wanted = ("--hosts", "2", "--size", "2e5", "--density", "0.05", "--rounds", "1", "--loopback", "--limit", "90")
    code, out, err = bench(capsys, *wanted, "--transport", "mpi", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert "mpi" in result["where"]
    rows = {each["name"]: each for each in result["rows"]}
    assert list(rows) == NAMES
    assert all(each["seconds"] > 0 for each in rows.values())
    assert rows["dense fp32"]["payload_bytes"] == 4 * 200_000
    assert 6 * 10_000 < rows["allgather int32 bf16"]["payload_bytes"] < 6 * 10_000 + 100


@pytest.mark.timeout(60)
def test_mpi_ranks_past_their_limit_fail_the_command(capsys):
    if reason := mpi_ranks.missing():
        pytest.skip(reason)
    before = folders()
    wanted = ("--hosts", "2", "--loopback", "--size", "1e5", "--transport", "mpi", "--limit", "0.05")
    code, out, err = bench(capsys, *wanted)
    assert (code, out) == (1, "")
    assert "mpiexec" in err and folders() == before


@pytest.mark.netns
@pytest.mark.timeout(110)
def test_interface_counts_what_the_meter_counts(possible):
    result = measure(Ranks(hosts=2, rate="100mbit", limit_s=90), Plan(size=1_000_000, density=0.1, rounds=1))
    assert [each["name"] for each in result["rows"]] == NAMES
    for each in result["rows"]:
        # Headers of full packets take 4.6 %, answers about 2 %; barriers and lengths a few packets.
        assert each["payload_bytes"] < each["interface_bytes"] < 1.12 * each["payload_bytes"] + 4000, each
        assert each["bound_s"] == pytest.approx(each["payload_bytes"] * 8 / 100e6 / GOODPUT, rel=1e-3)
        assert each["predicted_s"] > 0
    assert min(each["ratio_to_bound"] for each in result["rows"]) > 0.9  # nothing beats the wire by more than a burst


@pytest.mark.netns
@pytest.mark.timeout(60)
def test_failed_rank_in_a_host_leaves_no_namespace(possible):
    mine = namespaces.prefix().rsplit("x", 1)[0]
    before = folders()
    with pytest.raises(RankFailed, match="ended with code 1"):
        measure(Ranks(hosts=2, rate="none", limit_s=0.05), Plan(size=100_000, rounds=1))
    assert not [name for name in namespaces.names() if name.startswith(mine)]
    assert folders() == before


@pytest.fixture
def possible():
    if reason := Hosts.missing():
        pytest.skip(reason)


@pytest.mark.timeout(60)
def test_rank_past_its_limit_fails_the_command_with_its_words(capsys):
    wanted = ("--hosts", "2", "--loopback", "--size", "1e5", "--limit", "0.05")
    code, out, err = bench(capsys, *wanted)
    assert (code, out) == (1, "")
    assert "rank" in err and "ended with code 1" in err and "File " in err


MISTAKES = {
    "hosts": (["--hosts", "1"], "at least 2 hosts"),
    "rate": (["--rate", "fast"], "rate 'fast'"),
    "size": (["--size", "10"], "1000 elements"),
    "infinite": (["--size", "inf"], "inf is no number of elements"),
    "density": (["--density", "1.5"], "density in (0, 1]"),
    "rounds": (["--rounds", "0"], "1 round"),
    "loopback": (["--loopback", "--rate", "1gbit"], "loopback has no rate"),
    "transport": (["--loopback", "--transport", "smoke"], "allowed: gloo, mpi"),
    "mpi": (["--transport", "mpi"], "--loopback"),
    "zero": (["--hosts", "0", "--rate", "1gbit"], "loopback has no rate"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(capsys, name):
    arguments, said = MISTAKES[name]
    code, out, err = bench(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_row_takes_the_slowest_rank_and_the_mean_bytes():
    fast = {"seconds": [1.0, 3.0, 2.0], "payload": [100.0] * 3, "interface": [110] * 3, "bytes": 724.0, "messages": 2}
    slow = {"seconds": [4.0, 6.0, 5.0], "payload": [300.0] * 3, "interface": [330] * 3, "bytes": 724.0, "messages": 2}
    found = row("a", [fast, slow], 8000, latency=0.5)
    assert (found["seconds"], found["payload_bytes"], found["interface_bytes"]) == (5.0, 200, 220)
    assert found["bound_s"] == pytest.approx(200 / 1000 * 1514 / 1448)
    assert found["ratio_to_bound"] == pytest.approx(5.0 / found["bound_s"])
    assert found["predicted_s"] == pytest.approx(0.757 + 1.0)


def means(world):
    """Return the true mean and each candidate's, when it sends everything."""
    gradient = Gradient(20_000, world.rank)
    gradient.draw(3)
    true = gradient.flat.clone()
    world.transport.all_reduce(true, "control")
    true /= world.size
    settings = {"density": 1.0, "collective": "allgather", "values": "fp32"}
    found = {
        "fp32": Dense(gradient, world.transport, torch.float32),
        "bf16": Dense(gradient, world.transport, torch.bfloat16),
        "naive": Naive(gradient, world.transport, 1.0),
        "powersgd": PowerSGD(gradient, world.transport, rank=gradient.columns),
        "ours": Ours(gradient, world.transport, settings),
    }
    results = {}
    for name, candidate in found.items():
        candidate.prepare()
        results[name] = torch.cat([part.reshape(-1) for part in candidate.exchange().values()])
        candidate.close()
    return gradient.flat, true, results


@pytest.mark.timeout(90)
def test_every_candidate_makes_the_mean():
    (one, true, results), (two, _, others) = gloo_ranks(2, means)
    assert not torch.equal(one, two)
    torch.testing.assert_close(true, (one + two) / 2)
    for name, result in results.items():
        error = float((result - true).norm() / true.norm())
        assert error < (6e-3 if name == "bf16" else 1e-5), (name, error)
        torch.testing.assert_close(result, others[name], rtol=0, atol=0)


@pytest.mark.parametrize("make", [lambda g: Naive(g, Alone(), 0.1), lambda g: PowerSGD(g, Alone(), rank=2)])
def test_what_is_not_sent_stays(make):
    gradient = Gradient(20_000, 0)
    gradient.draw(0)
    candidate = make(gradient)
    sent = torch.cat([part.reshape(-1) for part in candidate.exchange().values()])
    assert 0 < sent.norm() < gradient.flat.norm()
    torch.testing.assert_close(sent + candidate.residual, gradient.flat)


def test_gradient_is_the_same_for_a_step_and_alike_on_ranks():
    one, two = Gradient(2_345_678, 0), Gradient(2_345_678, 1)
    assert one.size == sum(part.numel() for part in one.named.values()) == 2_344_000
    one.draw(1)
    two.draw(1)
    layers = zip(one.named.values(), two.named.values(), strict=True)
    for a, b in layers:
        assert float(torch.corrcoef(torch.stack([a.reshape(-1), b.reshape(-1)]))[0, 1]) == pytest.approx(0.36, abs=0.02)
    first = one.flat.clone()
    one.draw(2)
    assert not torch.equal(first, one.flat)
    one.draw(1)
    assert torch.equal(first, one.flat)
    with pytest.raises(ValueError, match="at least 1000"):
        Gradient(999, 0)


def test_interface_that_is_not_there_is_named():
    assert sent_bytes(None) is None
    assert sent_bytes("lo") >= 0
    with pytest.raises(ValueError, match="nosuch0"):
        sent_bytes("nosuch0")
