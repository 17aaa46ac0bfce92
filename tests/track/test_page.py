import html.parser
import pathlib
import re

import pytest
from run_folders import EVIL, FIGURES, lines, rows, write_run

from sparsetrain.track.page import gather, page
from sparsetrain.track.report import write_report


class Tags(html.parser.HTMLParser):
    """The tags and attributes of a page; refuses what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_has_every_figure_of_every_run(tmp_path):
    runs = gather([write_run(tmp_path / "one"), write_run(tmp_path / "two", 100)])
    text = page(runs)
    tags = Tags(text)
    assert set(re.findall(r'<figure id="([^"]+)"', text)) == FIGURES | {"planner-0", "planner-1"}
    assert "not recorded" not in text and "What is missing" not in text
    assert tags.tags.count("script") == 1 and "style" not in tags.attributes
    assert "blocks.0.attention.qkv.weight" in text and "rank 3 on vm: gone" in text
    assert "-16.7%" in text  # 50 ms predicted, 60 ms measured


def test_texts_of_others_stay_texts(tmp_path):
    folder = write_run(tmp_path / "one", name=EVIL)
    for name in ("run.json", "launch.json", "regimes.json", "env.json"):
        text = (folder / name).read_text()
        for word in ("rank 3 on vm: gone", "allgather", "finished", '"vm"', "2.13.0", '"ray"', "quickest"):
            text = text.replace(word.strip('"'), "<script>alert(1)</script>'><img src=x onerror=alert(2)>")
        (folder / name).write_text(text)
    lines(folder / "events.rank00000.jsonl", [{"at": 1015.0, "step": 50, "alert": EVIL, "text": EVIL}])
    lines(folder / "layers.jsonl", [{"train/step": step, f"density/{EVIL}": 0.5} for step in (1, 2)])
    evil = folder.rename(tmp_path / EVIL.replace("/", ":"))
    text = page(gather([evil, write_run(tmp_path / "two")]))
    tags = Tags(text)
    assert tags.tags.count("script") == 1 and "img" not in tags.tags
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert "\x1b" not in text and "\u202e" not in text
    assert "alert(1)" in text  # it is shown, as text


def test_empty_and_broken_folders_give_a_page_that_says_what_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    broken = write_run(tmp_path / "broken")
    for path in broken.iterdir():
        path.write_bytes(b"\xff{" + path.read_bytes()[:40])
    for folders in ([tmp_path / "empty"], [broken], [broken, tmp_path / "empty"], [tmp_path / "nowhere"]):
        text = write_report(folders, tmp_path / "report").read_text()
        Tags(text)
        assert "What is missing" in text and "run.json is" in text and "metrics.jsonl" in text
        assert (tmp_path / "report/report.txt").is_file()


def test_two_runs_of_one_name_stay_apart(tmp_path):
    runs = gather([write_run(tmp_path / "a/run"), write_run(tmp_path / "b/run"), tmp_path / "b/run"])
    assert [run.name for run in runs] == ["a/run", "b/run (2)", "b/run (3)"]


@pytest.mark.timeout(120)
def test_many_runs_stay_under_3_megabytes(tmp_path):
    many: list[pathlib.Path] = []
    for number in range(150):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        lines(folder / "metrics.jsonl", rows(400, 1))
        many.append(folder)
    for folder in [write_run(tmp_path / "one")]:
        lines(
            folder / "layers.jsonl", [{f"density/layer{n}": 0.5, "train/step": s} for s in range(99) for n in range(9)]
        )
        many.append(folder)
    text = page(gather(many))
    assert len(text.encode()) < 3e6 and text.count("<tr>") > 150


def test_a_name_with_a_formula_in_it_is_drawn(tmp_path):
    folder = tmp_path / "$\\frac$ _中"
    folder.mkdir()
    lines(folder / "metrics.jsonl", rows())
    write_report([folder], tmp_path / "report")
    assert (tmp_path / "report/report.png").stat().st_size > 20_000
