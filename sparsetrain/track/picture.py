"""The curves of some runs as one picture, for those who put it elsewhere: report.png."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from sparsetrain.track.axes import logarithmic
from sparsetrain.track.console import clean
from sparsetrain.track.digest import BYTES, STEP, Digest

PARTS = ("forward_backward", "exchange", "optimizer", "data")


def draw(runs: Mapping[str, Digest], path: pathlib.Path) -> None:
    """Draw the runs into the file. Raises ImportError without matplotlib, OSError where it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for number, (name, run) in enumerate(runs.items()):
        _curves(axes, _plain(name), f"C{number % 10}", run)
    _bars(axes[1][2], runs)
    _label(axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font has not
        figure.savefig(path, dpi=110)


def _curves(axes: Any, name: str, color: str, run: Digest) -> None:
    def plot(axis: Any, y: str, x: str = STEP, factor: float = 1.0, **style: Any) -> None:
        points = run.curve(x, y)
        axis.plot([a for a, _ in points], [b * factor for _, b in points], color=color, **style)

    dots = {"marker": "o", "markersize": 3, "label": name}
    plot(axes[0][0], "train/loss", alpha=0.35, linewidth=1)
    plot(axes[0][0], "eval/loss", **dots)
    sent = [(max(x, 1.0) / 1e6, y) for x, y in run.curve(BYTES, "eval/loss")]
    axes[0][1].plot([x for x, _ in sent], [y for _, y in sent], color=color, **dots)
    plot(axes[0][2], "comm/gradient_bytes", factor=1e-6, label=f"{name}: gradient")
    if any(y for _, y in run.curve(STEP, "comm/mask_bytes")):
        plot(axes[0][2], "comm/mask_bytes", factor=1e-6, linestyle=":", label=f"{name}: mask")
    plot(axes[1][0], "mask/sparsity", label=f"{name}: sparsity")
    if run.curve(STEP, "mask/churn"):
        plot(axes[1][0], "mask/churn", linestyle=":", marker=".", label=f"{name}: churn")
    plot(axes[1][1], "grad/residual_norm", label=name)


def _bars(axis: Any, runs: Mapping[str, Digest]) -> None:
    """Stack the mean milliseconds of each part of a step, one bar a run."""
    base = [0.0] * len(runs)
    names = [_plain(name) for name in runs]
    for part in PARTS:
        height = [1e3 * run.parts.get(part, 0.0) for run in runs.values()]
        axis.bar(names, height, bottom=base, width=0.5, label=part.replace("_", " + "))
        base = [low + more for low, more in zip(base, height, strict=True)]
    axis.set_xlim(-0.75, len(runs) - 0.25)


def _label(axes: Any) -> None:
    titles = (
        ("loss (dots: validation)", "step", "nats"),
        ("validation loss against bytes", "MB sent by rank 0, all kinds", "nats"),
        ("bytes sent by rank 0", "step", "MB, cumulative"),
        ("weights: sparsity and churn", "step", "share"),
        ("residual of rank 0", "step", "2-norm"),
        ("where a step's time goes", "", "ms, mean"),
    )
    for axis, (title, x, y) in zip(axes.flat, titles, strict=True):
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
        if 0 < len(axis.get_legend_handles_labels()[0]) <= 24:
            axis.legend(fontsize=8)
    logarithmic(axes[0][1])
    if any(value > 0 for line in axes[0][2].get_lines() for value in line.get_ydata()):
        axes[0][2].set_yscale("log")


def _plain(name: str) -> str:
    """Return a name in which matplotlib sees no formula."""
    return clean(name)[:60].replace("$", r"\$")
