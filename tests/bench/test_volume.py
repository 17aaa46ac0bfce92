"""What collectives put on the wire as ranks are added: the formulas hold for the bytes that were counted."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from sparsetrain.bench.volume import COLUMNS, FORMULAS, WORD, Plan, measure
from sparsetrain.cli import main
from sparsetrain.collective.payload import HEADER

RANKS = (2, 4, 8, 16)
PLAN = Plan(ranks=RANKS, size=100_000, density=0.04, rounds=2)


@pytest.fixture(scope="module")
def rows():
    return {(row["name"], row["ranks"]): row for row in measure(PLAN)}


@pytest.mark.timeout(110)
def test_every_collective_and_number_of_ranks_has_a_row(rows):
    assert set(rows) == {(name, ranks) for name in FORMULAS for ranks in RANKS}
    for row in rows.values():
        assert tuple(row) == COLUMNS
        assert (row["n"], row["k"], row["bytes"]) == (100_000, 4000, WORD * row["words_sent"])
        # What is sent is received, by the one or the other.
        assert row["words_received"] == pytest.approx(row["words_sent"], rel=1e-9)
        assert row["words_sent_worst"] >= row["words_sent"] * (1 - 1e-9)
        assert row["words_received_worst"] >= row["words_received"] * (1 - 1e-9)
        assert row["ratio_to_bound"] == pytest.approx(row["words_sent"] / row["bound_words"])


def test_allgather_grows_with_every_rank(rows):
    for ranks in RANKS:
        row = rows["allgather", ranks]
        header = HEADER.size / WORD * (ranks - 1)
        assert row["words_sent"] - header == row["words_sent_worst"] - header == 2 * 4000 * (ranks - 1)


def test_ok_topk_stays_flat_and_every_rank_under_its_bound(rows):
    found = [rows["ok_topk", ranks] for ranks in RANKS]
    assert all(row["distinct"] == 4000 and row["bound_words"] < 6 * 4000 for row in found)
    assert all(row["ratio_to_bound"] < 1 and row["ratio_to_bound_worst"] < 1 for row in found)
    # Beside the factor (P-1)/P, which alone takes it from 1/2 to 1; the threshold's four counts add log2 P kB.
    flat = [row["words_sent"] * ranks / (ranks - 1) for row, ranks in zip(found, RANKS, strict=True)]
    assert max(flat) < 1.2 * min(flat)


def test_ranks_share_some_places_and_not_all(rows):
    for ranks in RANKS:
        row = rows["split_reduce", ranks]
        assert 1.1 * 4000 < row["distinct"] < 0.95 * 4000 * ranks
        assert row["words_sent"] == pytest.approx(row["bound_words"], rel=0.02)


def test_the_same_seed_gives_the_same_rows_and_another_one_others():
    def counted(seed):
        plan = Plan(ranks=(3,), size=20_000, density=0.05, rounds=1, seed=seed)
        return measure(plan)

    assert counted(1) == counted(1) != counted(2)


def test_the_command_prints_json_and_draws(tmp_path, capsys):
    picture = tmp_path / "volume.svg"
    with pytest.raises(SystemExit) as ended:
        main(["bench", "volume", "--ranks", "2", "--size", "5e3", "--rounds", "1", "--json", "--plot", str(picture)])
    assert ended.value.code == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(FORMULAS)
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "1"], "at least 2 ranks"),
        (["--size", "10"], "1000 elements"),
        (["--size", "nan"], "nan is no number"),
        (["--size", "inf"], "inf is no number"),
        (["--density", "0"], "density in (0, 1]"),
        (["--rounds", "0"], "at least 1 round"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "volume", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said in err and err.count("\n") == 1
