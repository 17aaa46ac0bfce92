import pytest
from click.testing import CliRunner

from sparsetrain.bench import plot
from sparsetrain.bench.scaling import FABRICS, NAMES, Plan, measure, show
from sparsetrain.cli import cli
from sparsetrain.plan.costs import Costs


@pytest.mark.parametrize("fabric", FABRICS)
def test_every_collective_scales_to_thousands_of_ranks(fabric):
    plan = Plan(ranks=(2, 64, 2048), fabric=fabric, size=1_000_000)
    rows = measure(plan, costs=Costs())
    assert [row["ranks"] for row in rows] == [2, 64, 2048]
    assert all(row[name] > 0 for row in rows for name in NAMES)
    assert rows[2]["allgather"] > rows[1]["allgather"] > rows[0]["allgather"]
    assert "best" in show(rows, plan)


def test_where_the_new_collectives_win():
    """gtopk where messages take long, hierarchical between sites: what the simulation is for."""
    assert measure(Plan(ranks=(2048,), latency_s=1e-3), costs=Costs(message_s=1e-4))[0]["best"] == "gtopk"
    assert measure(Plan(ranks=(2048,), fabric="sites"), costs=Costs())[0]["best"] == "hierarchical"


def test_a_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = measure(Plan(ranks=(2, 8), size=100_000), costs=Costs())
    plot.scaling(rows, str(tmp_path / "scaling.svg"))
    text = (tmp_path / "scaling.svg").read_text()
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--fabric", "star"], "bench scaling: fabric star: no such fabric; allowed: flat"),
        (["--rate", "none"], "bench scaling: want a rate that has a limit"),
        (["--ranks", "1"], "bench scaling: want at least 2 ranks"),
    ],
)
def test_mistakes_are_one_line(words, line):
    from sparsetrain.config.errors import JobError

    with pytest.raises(JobError, match=line):
        CliRunner().invoke(cli, ["bench", "scaling", *words], catch_exceptions=False)
