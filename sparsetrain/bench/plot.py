"""Charts of what the benches measure, one function each. The same rows give the same bytes, with the same matplotlib.

matplotlib is an optional package, so it is imported inside; figures are made without pyplot, so none stays open and no
display is looked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

SUFFIXES = (".svg", ".png")
WIDTH = 0.8  # of a group of bars
DASHED = {"linestyle": "--", "linewidth": 1.2}
STYLE = {
    "svg.hashsalt": "sparsetrain",  # else identifiers are drawn at random
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
Rows = Sequence[Mapping[str, Any]]


def check(path: str) -> None:
    """Raise ValueError, in one line, where a picture cannot be written there or nothing could draw it."""
    folder = pathlib.Path(path).parent
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise ValueError(f"want a name that ends in {' or '.join(SUFFIXES)}")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    refuse_unwritable(path)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError("needs matplotlib: pip install 'sparsetrain[report]'") from error


def refuse_unwritable(path: str) -> None:
    """Raise ValueError where a file cannot be written; one that was not there is not there afterwards."""
    there = os.path.lexists(path)
    if there and not os.path.isfile(path):  # a pipe would keep us waiting
        raise ValueError("cannot be written: is no file")
    try:
        with open(path, "ab"):
            pass
        if not there:
            os.unlink(path)
    except OSError as error:
        raise ValueError(f"cannot be written: {error.strerror}") from error


def select(rows: Rows, path: str) -> None:
    """Draw the seconds of each selection over those of one memory pass, grouped by density."""
    sizes = {row["n"] for row in rows}
    groups = list(dict.fromkeys((row["n"], row["density"]) for row in rows))
    with _chart(path, 7, 4) as figure:
        axes = figure.subplots()
        series: dict[str, dict[Any, float]] = {}
        for row in rows:
            series.setdefault(row["name"], {})[row["n"], row["density"]] = row["ratio_to_limit"]
        _bars(axes, groups, series)
        axes.axhline(1, color="black", label="limit: one memory pass, r += g", **DASHED)
        labels = [f"{density:g}" if len(sizes) == 1 else f"{density:g}\nn = {n:.3g}" for n, density in groups]
        axes.set_xticks(range(len(groups)), labels)
        axes.set(title="Selection with error feedback", xlabel="density of the gradient", yscale="log")
        axes.set_ylabel("seconds / seconds of one memory pass")
        axes.grid(axis="y")
        figure.legend(loc="outside right center")


def codec(rows: Rows, path: str) -> None:
    """Draw the bits per entry of every code, a panel per density; value codes are named with their relative error."""
    densities = list(dict.fromkeys(row["density"] for row in rows))
    codes = list(dict.fromkeys(row["indices"] for row in rows))
    with _chart(path, 8, 0.5 + 2.6 * len(densities)) as figure:
        for axes, density in zip(figure.subplots(len(densities), squeeze=False)[:, 0], densities, strict=True):
            series: dict[str, dict[str, float]] = {}
            for row in (row for row in rows if row["density"] == density):
                error = f"error {row['value_error']:.2g}" if row["value_error"] else "exact"
                series.setdefault(f"{row['values']}, {error}", {})[row["indices"]] = row["bits_per_entry"]
            _bars(axes, codes, series)
            if density < 1:
                entropy = -math.log2(density) - (1 - density) / density * math.log2(1 - density)
                axes.axhline(entropy, color="black", label="entropy of random places, no values", **DASHED)
            axes.set_xticks(range(len(codes)), codes)
            axes.set(title=f"density {density:g}", xlabel="index code", ylabel="bits per entry", yscale="log")
            axes.grid(axis="y")
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="value code, relative error")


def exchange(rows: Rows, path: str) -> None:
    """Draw the seconds of each candidate, with the least time that its payload needs on the wire."""
    with _chart(path, 7, 1.5 + 0.3 * len(rows)) as figure:
        axes = figure.subplots()
        _lying(axes, rows, "seconds", "{:.3g} s")
        bounds = [(row["bound_s"], at) for at, row in enumerate(rows) if row["bound_s"] is not None]
        if bounds:
            at = [place for _, place in bounds]
            low, high = [place - WIDTH / 2 for place in at], [place + WIDTH / 2 for place in at]
            label = "bound: received payload at the link's rate"
            axes.vlines([bound for bound, _ in bounds], low, high, color="black", label=label, **_plural(DASHED))
            figure.legend(loc="outside lower center")
        axes.set(title="Mean of a gradient over ranks", xlabel="seconds per exchange", xscale="log")
        axes.margins(x=0.15)


def step(rows: Rows, path: str) -> None:
    """Draw which share of the compute-only rate each candidate keeps."""
    with _chart(path, 7, 1.5 + 0.3 * len(rows)) as figure:
        axes = figure.subplots()
        _lying(axes, rows, "share_of_compute", "{:.2f}")
        axes.axvline(1, color="black", label="bound: no exchange at all", **DASHED)
        axes.set(title="Whole training steps", xlabel="rate of steps / compute-only rate")
        axes.margins(x=0.12)
        figure.legend(loc="outside lower center")


def volume(rows: Rows, path: str) -> None:
    """Draw the words that a rank sends per step against the number of ranks, with the formulas."""
    with _chart(path, 7.5, 5) as figure:
        axes = figure.subplots()
        names = list(dict.fromkeys(row["name"] for row in rows))
        for color, name in ((f"C{number}", name) for number, name in enumerate(names)):
            own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["ranks"])
            ranks, mean = [row["ranks"] for row in own], [row["words_sent"] for row in own]
            worst = [max(row["words_sent_worst"], row["words_received_worst"]) for row in own]
            axes.plot(ranks, mean, color=color, marker="o", markersize=4, label=name)
            axes.fill_between(ranks, mean, worst, color=color, alpha=0.12, linewidth=0)
            bound = [row["bound_words"] for row in own]
            axes.plot(ranks, bound, color=color, label=f"{name}: {own[0]['formula']}", **DASHED)
        ranks, n = sorted({row["ranks"] for row in rows}), rows[0]["n"]
        dense = [2 * n * (each - 1) / each for each in ranks]
        axes.plot(ranks, dense, color="grey", label="dense: 2n(P-1)/P", **DASHED)
        figure.suptitle(f"n = {n:,}, k = {rows[0]['k']:,.0f}; shaded: up to the rank that sends or receives the most")
        axes.set(xlabel="ranks P", ylabel="words of 4 bytes sent per rank and step", xscale="log", yscale="log")
        axes.set_xticks(ranks, [str(each) for each in ranks])
        axes.minorticks_off()
        axes.grid()
        figure.legend(loc="outside right center")


@contextlib.contextmanager
def _chart(path: str, width: float, height: float) -> Generator[Any]:
    """Hand out a figure of that many inches, in the same style whatever the user's settings; write it at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        dated = {"Date": None, "Creator": "sparsetrain"} if path.endswith(".svg") else {"Software": "sparsetrain"}
        figure.savefig(path, dpi=150, metadata=dated)


def _bars(axes: Any, groups: Sequence[Any], series: Mapping[str, Mapping[Any, float]]) -> None:
    """Stand the bars of all series side by side in each group."""
    width = WIDTH / len(series)
    for number, (name, values) in enumerate(series.items()):
        left = (number - (len(series) - 1) / 2) * width
        at = [place + left for place, group in enumerate(groups) if group in values]
        axes.bar(at, [values[group] for group in groups if group in values], width, label=name)


def _lying(axes: Any, rows: Rows, column: str, form: str) -> None:
    """Lay a bar for each row, the first on top, with its number at the end."""
    bars = axes.barh(range(len(rows)), [row[column] for row in rows], WIDTH)
    axes.bar_label(bars, [form.format(row[column]) for row in rows], padding=3)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x")


def _plural(style: Mapping[str, Any]) -> dict[str, Any]:
    """Return a style under the names that matplotlib has for many lines at once."""
    return {f"{name}s": value for name, value in style.items()}


def scaling(rows: Rows, path: str) -> None:
    """Draw the simulated milliseconds of every collective against the number of ranks."""
    names = [name for name in rows[0] if name not in ("ranks", "best")]
    with _chart(path, 7.5, 4.5) as figure:
        axes = figure.subplots()
        ranks = [row["ranks"] for row in rows]
        for name in names:
            axes.plot(ranks, [row[name] for row in rows], marker="o", markersize=3, label=name)
        axes.set_xscale("log", base=2)
        axes.set(title="Simulated exchange of one bucket", xlabel="ranks", ylabel="ms", yscale="log")
        axes.set_xticks(ranks, [f"{each:,}" for each in ranks], rotation=30)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center")
