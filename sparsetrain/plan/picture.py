"""A what-if grid as a picture: which way is the quickest where, and by how much."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.plan.words import rate


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: pathlib.Path) -> None:
    """Draw the grid into a file. Raises ImportError without matplotlib, ValueError for a suffix that it does not know,
    OSError where the file cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(row["mbit"] for row in rows))
    nodes = list(dict.fromkeys(row["nodes"] for row in rows))
    own = {(row["nodes"], row["mbit"]): row for row in rows}
    figure = Figure(figsize=(1.9 + 1.35 * len(rates), 1.6 + 0.6 * len(nodes)), layout="constrained")
    axes = figure.subplots()
    values = [[own[n, r]["over_dense"] for r in rates] for n in nodes]
    highest = max(2.0, max(max(line) for line in values))
    image = axes.imshow(values, aspect="auto", cmap="YlGn", norm=LogNorm(vmin=1.0, vmax=highest))
    for y, n in enumerate(nodes):
        for x, r in enumerate(rates):
            cell = own[n, r]
            dark = cell["over_dense"] > highest**0.65
            text = f"{cell['best']}\nx{cell['over_dense']:.2g}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(rates)), [rate(each) for each in rates], fontsize=8)
    axes.set_yticks(range(len(nodes)), [str(each) for each in nodes], fontsize=8)
    axes.set(xlabel="link of a node", ylabel="nodes", title=title)
    figure.colorbar(image, ax=axes, label="times as quick as dense")
    figure.savefig(path, dpi=110)
