"""One page about one or several runs: report.png and report.txt."""

from __future__ import annotations

import pathlib
from typing import Any

from sparsetrain.track.axes import logarithmic
from sparsetrain.track.compare import compare
from sparsetrain.track.jsonl import read, series


def write_report(folders: list[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Write the page into the folder `out` and return the path of the picture, or of the text without matplotlib."""
    out.mkdir(parents=True, exist_ok=True)
    text = out / "report.txt"
    text.write_text(compare(folders) + "\n", encoding="utf-8")
    try:
        import matplotlib
    except ImportError:
        with text.open("a", encoding="utf-8") as stream:
            stream.write("\nno picture: pip install 'sparsetrain[report]' brings matplotlib\n")
        return text
    matplotlib.use("Agg")
    picture = out / "report.png"
    _draw({folder.name: read(folder / "metrics.jsonl") for folder in folders}, picture)
    return picture


def _draw(runs: dict[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for number, (name, rows) in enumerate(runs.items()):
        color = f"C{number}"
        axes[0][0].plot(*series(rows, "train/loss"), color=color, alpha=0.35, linewidth=1)
        axes[0][0].plot(*series(rows, "eval/loss"), color=color, marker="o", markersize=3, label=name)
        evaluated = [row for row in rows if "eval/loss" in row]
        sent = [max(row.get("comm/total_bytes", 0.0), 1.0) / 1e6 for row in evaluated]
        axes[0][1].plot(
            sent, [row["eval/loss"] for row in evaluated], color=color, marker="o", markersize=3, label=name
        )
        steps, gradient = series(rows, "comm/gradient_bytes")
        axes[0][2].plot(steps, [count / 1e6 for count in gradient], color=color, label=f"{name}: gradient")
        _, mask = series(rows, "comm/mask_bytes")
        if any(mask):
            axes[0][2].plot(steps, [count / 1e6 for count in mask], color=color, linestyle=":", label=f"{name}: mask")
        axes[1][0].plot(*series(rows, "mask/sparsity"), color=color, label=f"{name}: sparsity")
        if series(rows, "mask/churn")[0]:
            axes[1][0].plot(*series(rows, "mask/churn"), color=color, linestyle=":", marker=".", label=f"{name}: churn")
        axes[1][1].plot(*series(rows, "grad/residual_norm"), color=color, label=name)
    _bars(axes[1][2], runs)
    _label(axes)
    figure.savefig(path, dpi=110)


def _bars(axis: Any, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Stack the mean milliseconds of each part of a step, one bar a run."""
    parts = ("forward_backward", "exchange", "optimizer", "data")
    base = [0.0] * len(runs)
    for part in parts:
        height = []
        for rows in runs.values():
            values = series(rows, f"time/{part}_s")[1]
            height.append(1e3 * sum(values) / max(1, len(values)))
        axis.bar(list(runs), height, bottom=base, width=0.5, label=part.replace("_", " + "))
        base = [low + more for low, more in zip(base, height, strict=True)]
    axis.set_xlim(-0.75, len(runs) - 0.25)


def _label(axes: Any) -> None:
    titles = (
        ("loss (dots: validation)", "step", "nats"),
        ("validation loss against bytes", "MB sent by rank 0, all kinds", "nats"),
        ("bytes sent by rank 0", "step", "MB, cumulative"),
        ("weights: sparsity and churn", "step", "share"),
        ("residual of rank 0", "step", "2-norm"),
        ("where a step's time goes", "", "ms"),
    )
    for axis, (title, x, y) in zip(axes.flat, titles, strict=True):
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    logarithmic(axes[0][1])
    if axes[0][2].get_lines():
        axes[0][2].set_yscale("log")
