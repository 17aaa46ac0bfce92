"""What there is to see of one or several runs: report.html, report.png and report.txt."""

from __future__ import annotations

import pathlib
import sys

from sparsetrain.track.compare import as_text
from sparsetrain.track.page import gather, page
from sparsetrain.track.picture import draw

PAGE, PICTURE, TEXT = "report.html", "report.png", "report.txt"


def write_report(folders: list[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Write page, picture and table into the folder `out`, and return the path of the page. What a run folder lacks is
    said on the page. Raises OSError where `out` cannot be written."""
    out.mkdir(parents=True, exist_ok=True)
    runs = gather(folders)
    table = as_text([run.name for run in runs], [run.digest.figures for run in runs]) + "\n"
    try:
        draw({run.name: run.digest for run in runs}, out / PICTURE)
    except ImportError:
        lacking = f"no {PICTURE}: matplotlib is not installed (extra `report`)"
        table += f"\n{lacking}\n"
        print(lacking, file=sys.stderr)
    except OSError:
        raise
    except Exception as error:  # numbers that no axis can hold; the page has its own
        print(f"{PICTURE}: cannot be drawn: {type(error).__name__}: {error}", file=sys.stderr)
    (out / TEXT).write_text(table, encoding="utf-8", errors="replace")
    path = out / PAGE
    path.write_text(page(runs), encoding="utf-8", errors="replace")
    return path
