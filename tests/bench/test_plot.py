"""Every chart is drawn from its rows, the same bytes each time; what cannot be drawn is refused before measuring."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from sparsetrain.bench import codec, exchange, plot, select, step, volume
from sparsetrain.cli import main

SELECT = [
    {"name": name, "n": 1000, "density": density, "ratio_to_limit": ratio}
    for density in (0.01, 0.1)
    for name, ratio in (("topk", 1.3), ("torch.topk", 40.0))
]
CODEC = [
    {"indices": indices, "values": values, "density": density, "bits_per_entry": 20.0, "value_error": error}
    for density in (0.01, 1.0)
    for indices in ("deltas", "elias_fano")
    for values, error in (("fp32", 0), ("int8", 0.0078))
]
EXCHANGE = [
    {"name": "dense fp32", "seconds": 1.3, "bound_s": 1.2},
    {"name": "ok_topk auto bf16", "seconds": 0.3, "bound_s": 0.01},
]
STEP = [{"name": "compute only", "share_of_compute": 1.0}, {"name": "topk bf16", "share_of_compute": 0.6}]
VOLUME = [
    {
        "name": name,
        "ranks": ranks,
        "n": 1000,
        "k": 10.0,
        "words_sent": 20.0 * ranks,
        "words_sent_worst": 21.0 * ranks,
        "words_received_worst": 22.0 * ranks,
        "formula": "<=6k(P-1)/P",
        "bound_words": 30.0 * ranks,
    }
    for name in ("allgather", "ok_topk")
    for ranks in (2, 8)
]
CHARTS = {
    "select": (plot.select, SELECT, ["topk", "torch.topk", "limit: one memory pass, r += g", "0.01"]),
    "codec": (plot.codec, CODEC, ["deltas", "elias_fano", "fp32, exact", "int8, error 0.0078", "density 0.01"]),
    "exchange": (plot.exchange, EXCHANGE, ["dense fp32", "ok_topk auto bf16", "bound: received payload"]),
    "step": (plot.step, STEP, ["compute only", "topk bf16", "bound: no exchange at all"]),
    "volume": (plot.volume, VOLUME, ["allgather", "ok_topk: <=6k(P-1)/P", "dense: 2n(P-1)/P", "n = 1,000, k = 10"]),
}
MEASURING = {"select": select, "codec": codec, "exchange": exchange, "step": step, "volume": volume}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_holds_its_names_and_is_the_same_twice(tmp_path, name):
    draw, rows, words = CHARTS[name]
    before = dict(matplotlib.rcParams)
    draw(rows, str(tmp_path / "one.svg"))
    # A user's own settings change nothing, and are left alone.
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path"}):
        draw(rows, str(tmp_path / "two.svg"))
    assert dict(matplotlib.rcParams) == before
    one, two = ((tmp_path / each).read_bytes() for each in ("one.svg", "two.svg"))
    assert one == two
    texts = [each.text or "" for each in ElementTree.fromstring(one).iter() if each.tag.endswith("}text")]
    for word in words:
        assert any(word in text for text in texts), word
    assert b"stroke-dasharray" in one  # the bound


@pytest.mark.parametrize("name", CHARTS)
def test_a_png_is_one_too(tmp_path, name):
    draw, rows, _ = CHARTS[name]
    for each in ("one.png", "two.png"):
        draw(rows, str(tmp_path / each))
    one, two = ((tmp_path / each).read_bytes() for each in ("one.png", "two.png"))
    assert one == two and one.startswith(b"\x89PNG")


def test_an_exchange_without_a_rate_has_no_bound(tmp_path):
    rows = [row | {"bound_s": None} for row in EXCHANGE]
    plot.exchange(rows, str(tmp_path / "one.svg"))
    text = (tmp_path / "one.svg").read_text()
    assert "dense fp32" in text and "bound" not in text


def refused(capsys, monkeypatch, name: str, path: str) -> str:
    """Return the line with which the command refuses; nothing may have been measured."""
    monkeypatch.setattr(MEASURING[name], "measure", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--plot", path])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"bench {name}: --plot {path}: ")
    return err


@pytest.mark.parametrize("name", CHARTS)
def test_what_cannot_be_drawn_is_refused_in_a_line(tmp_path, monkeypatch, capsys, name):
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    for path in ("chart.pdf", "chart", str(tmp_path / ".svg")):
        assert "ends in .svg or .png" in refused(capsys, monkeypatch, name, path)
    assert "no folder" in refused(capsys, monkeypatch, name, str(tmp_path / "nowhere" / "chart.svg"))
    assert "cannot be written" in refused(capsys, monkeypatch, name, str(folder))
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", CHARTS)
def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = refused(capsys, monkeypatch, name, str(tmp_path / "chart.svg"))
    assert "pip install 'sparsetrain[report]'" in said
