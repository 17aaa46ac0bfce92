import json

import pytest

from sparsetrain.bench import codec, select
from sparsetrain.cli import main


def test_select_rows_say_which_are_exact():
    rows = select.measure([200_000], [0.01], 1, 1)
    assert {row["name"] for row in rows} == {*select.SPARSIFIERS, "topk reference", "torch.topk"}
    for row in rows:
        assert tuple(row) == select.COLUMNS
        assert row["seconds"] > 0 and row["ratio_to_limit"] > 0 and 0.5 < row["energy"] < 1.2
    assert all(row["exact"] for row in rows if "topk" in row["name"] and row["name"] != "block_topk")


@pytest.mark.timeout(120)
def test_codec_rows_hold_every_code_and_auto_is_the_shortest():
    rows = codec.measure([0.01], 1)
    assert all(tuple(row) == codec.COLUMNS for row in rows)
    for values in {row["values"] for row in rows}:
        bits = {row["indices"]: row["bits_per_entry"] for row in rows if row["values"] == values}
        assert bits["auto"] == min(bits.values())
    assert all(row["value_error"] == 0 for row in rows if row["values"] == "fp32")


def test_the_command_prints_json_and_refuses_nonsense_in_a_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "select", "--size", "50000", "--density", "0.01", "--rounds", "1", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)[0]["n"] == 50000
    for command in (["select", "--density", "2"], ["select", "--rounds", "0"], ["codec", "--density", "-1"]):
        with pytest.raises(SystemExit) as ended:
            main(["bench", *command])
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
