"""One picture of what a run follows: masks and exchange on one axis, learning rate and drops on another."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from sparsetrain.track.jsonl import series

Row = dict[str, float]


def draw(rows: Sequence[Row], title: str, path: pathlib.Path) -> None:
    """Draw the rows of a preview into the file. Raises ImportError without matplotlib, ValueError for a suffix that
    matplotlib does not know, OSError where the file cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    kept = list(rows)
    upper.plot(*_inverse(kept, "mask/sparsity"), drawstyle="steps-pre", label="weights in the forward set")
    if any(row["mask/update_sparsity"] != row["mask/sparsity"] for row in kept):
        upper.plot(*_inverse(kept, "mask/update_sparsity"), drawstyle="steps-pre", label="weights in the update set")
    upper.plot(
        *series(kept, "grad/density"), drawstyle="steps-pre", label="entries sent of the update set, an exchange"
    )
    upper.plot(*series(kept, "grad/sent"), drawstyle="steps-pre", label="entries sent of all masked weights, a step")
    updates, _ = series(kept, "mask/update")
    low = min(row["grad/sent"] for row in kept)
    upper.plot(updates, [low] * len(updates), "|", color="black", markersize=8, label="masks change")
    upper.set(title=title, ylabel="share", yscale="log")
    lower.plot(*series(kept, "train/lr"), label="learning rate, share of its peak")
    if series(kept, "mask/drop_fraction")[0]:
        lower.plot(*series(kept, "mask/drop_fraction"), ".-", label="share of active weights dropped")
    lower.set(xlabel="step", ylabel="share")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _inverse(rows: list[Row], key: str) -> tuple[list[float], list[float]]:
    steps, values = series(rows, key)
    return steps, [1.0 - value for value in values]
