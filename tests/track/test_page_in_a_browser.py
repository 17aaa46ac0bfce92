"""The report in a real Chromium: nothing fetched, no error, every figure there, readable on a phone, light and dark."""

import pytest
from browser import binary, browser
from run_folders import EVIL, FIGURES, write_run

from sparsetrain.track.report import write_report

pytestmark = [
    pytest.mark.skipif(binary() is None, reason="needs chromium or chrome on the PATH"),
    pytest.mark.timeout(120),
]
WIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".box") && !e.closest("svg")
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className)"""
EMPTY = """[...document.querySelectorAll("figure")].filter(e => e.getBoundingClientRect().height < 60
  || !e.querySelector("svg path, svg rect")).map(e => e.id)"""
CONTRAST = """(() => { const light = (text) => text.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765;
  const style = getComputedStyle(document.body); return light(style.color) - light(style.backgroundColor); })()"""
ORDER = """[...document.querySelectorAll("table.sortable")[0].tBodies[0].rows].map(row => row.cells[0].textContent)"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    long = "a-very-long-name-without-any-blank-" * 3
    folders = [write_run(home / name, steps) for name, steps in (("one", 60), (long, 100), ("evil", 80))]
    folders[2] = folders[2].rename(home / EVIL.replace("/", ":"))
    found = write_report(folders, home / "report")
    assert found.stat().st_size < 3e6
    return found


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_whole(path, width, dark):
    with browser() as page:
        page.open(path, width, dark)
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(WIDE) == []
        assert set(page.value('[...document.querySelectorAll("figure")].map(e => e.id)')) >= FIGURES | {"planner-0"}
        assert page.value(EMPTY) == []
        assert (page.value(CONTRAST) > 0.6) if dark else (page.value(CONTRAST) < -0.6)
        assert page.fetched == [path.as_uri()]
        assert page.said == []


def test_a_click_sorts_and_a_pointer_reads_a_curve(path):
    with browser() as page:
        page.open(path, 1280, False)
        before = page.value(ORDER)
        assert before[0] == "one"
        head = 'document.querySelectorAll("table.sortable th button")[1]'
        assert page.value(f"{head}.textContent") == "steps"
        page.value(f"{head}.click()")
        assert page.value(ORDER) == [before[0], before[2], before[1]]  # 60, 80, 100 steps
        page.value(f"{head}.click()")
        assert page.value(ORDER) == [before[1], before[2], before[0]]
        assert page.value(f"{head}.parentNode.ariaSort") == "descending"
        move = 'new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 50})'
        page.value(f"""(() => {{ const plot = document.querySelector("#sparsity svg");
            const box = plot.getBoundingClientRect(); plot.dispatchEvent({move}); }})()""")
        assert ": 0.9 at " in page.value('document.querySelector("#sparsity .readout").textContent')
        assert page.said == []
