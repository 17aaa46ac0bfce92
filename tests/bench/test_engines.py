"""What a step sends under each engine, by the cards of hosts of their own."""

from __future__ import annotations

import importlib.util
import json

import pytest

from sparsetrain.bench.engines import COLUMNS, ENGINES, Plan, measure, show
from sparsetrain.bench.hosts import Hosts
from sparsetrain.bench.ranks import Ranks
from sparsetrain.cli import main

installed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (sparsetrain[deepspeed])"
)
SMALL = Plan(layers=1, steps=3)


def checked(ranks: Ranks) -> None:
    """Compare what is sent with what the stages have to send, between two ranks."""
    result = measure(ranks, SMALL)
    rows = {(each["engine"], each["exchange"]): each for each in result["rows"]}
    assert list(rows) == [(engine, exchange) for engine in ENGINES for exchange in ("dense", "sparse")]
    gradient = 4 * result["weights"]  # two ranks send as much as there is
    for engine in ("torch", "deepspeed 0"):
        assert rows[engine, "dense"]["sent_bytes"] >= gradient
        assert rows[engine, "sparse"]["of_dense"] <= 0.04
    for engine in ("fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3"):
        dense, sparse = (rows[engine, exchange]["sent_bytes"] for exchange in ("dense", "sparse"))
        assert 0.95 * gradient < dense - sparse < 1.1 * gradient  # what is left are the weights
        assert sparse > 0.4 * gradient
    for each in result["rows"]:
        assert set(each) == set(COLUMNS) and 0.8 < each["booked"] <= 1.0  # headers of packets are not booked
    json.dumps(result)
    assert show(result).count("\n") == 1 + len(rows)


@installed
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_meter_books_what_stages_send():
    checked(Ranks(hosts=2, rate="none", loopback=True, limit_s=200))


@installed
@pytest.mark.slow
@pytest.mark.netns
@pytest.mark.timeout(240)
@pytest.mark.skipif(bool(Hosts.missing()), reason=Hosts.missing() or "")
def test_sparse_exchange_takes_the_gradients_share_off_the_wire():
    checked(Ranks(hosts=2, rate="none", limit_s=200))


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--steps", "0"], "counts of at least 1"), (["--density", "2"], "(0, 1]")]
)
def test_mistakes_are_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "engines", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said in err and err.count("\n") == 1
