"""Many runs in one table and one figure: mean and spread over seeds of what was reached and what it took."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.track.compare import figures

SPARSITY = "masks.sparsity"  # the axis that a curve runs along
DENSE = "dense"  # the value of `masks` of a run without masks
# Column, metric of a run, factor; what a run lacks stays out of the mean.
COLUMNS = (
    ("accuracy_percent", "eval/accuracy", 100.0),
    ("loss", "eval/loss", 1.0),
    ("nonzeros", "mask/nonzeros", 1.0),
    ("sparsity", "mask/sparsity", 1.0),
    ("effective_sparsity", "mask/effective_sparsity", 1.0),
    ("explored", "mask/explored", 1.0),
    ("forward_operations", "mask/forward_operations", 1.0),
    ("training_operations", "mask/training_operations", 1.0),
    ("gradient_kb_a_step", "comm/gradient_bytes_mean", 1e-3),
    ("mask_kb_a_step", "comm/mask_bytes_mean", 1e-3),
    ("seconds", "job/wall_s", 1.0),
)
SPREAD = ("accuracy_percent", "loss")  # columns whose spread over seeds is shown
DENSE_FIGURES = {"sparsity": 0.0, "forward_operations": 1.0, "training_operations": 1.0}
SLACK = (0.5, 1.0)  # points of accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its values on the axes, its seed, its folder."""

    values: Mapping[str, str]
    seed: int
    folder: pathlib.Path


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row per combination of values, in order of first appearance: the values, the number of seeds, means, and
    for accuracy and loss the standard deviation over seeds as `_sd` (None for one seed)."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(dict(run.values)), []).append(run)
    found = []
    for group in groups.values():
        row: dict[str, Any] = {**group[0].values, "seeds": len(group)}
        measured = [figures(run.folder) for run in group]
        for column, metric, factor in COLUMNS:
            values = [run[metric] * factor for run in measured if metric in run]
            row[column] = statistics.mean(values) if values else None
            if column in SPREAD:
                row[f"{column}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        if row.get("masks") == DENSE:
            row |= DENSE_FIGURES
        found.append(row)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text, without columns that say nothing, and under it each curve's parameter slack."""
    axes = list(dict.fromkeys(key for row in found for key in row if key not in measured()))
    lines = [[*(axis.removeprefix("masks.") for axis in axes), "seeds", *(column for column, _, _ in COLUMNS)]]
    for row in found:
        shown = [_number(row[column], row.get(f"{column}_sd")) for column, _, _ in COLUMNS]
        lines.append([*(str(row.get(axis, "-")) for axis in axes), str(row["seeds"]), *shown])
    kept = [n for n in range(len(lines[0])) if any(line[n] != "-" for line in lines[1:])]
    widths = {n: max(len(line[n]) for line in lines) for n in kept}
    text = ["  ".join(line[n].ljust(widths[n]) for n in kept).rstrip() for line in lines]
    return "\n".join([*text, *_slack_lines(found)])


def write(found: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> list[pathlib.Path]:
    """Write table.txt, table.json and, where matplotlib is, table.png into the folder; return where they lie."""
    paths = [folder / "table.txt", folder / "table.json"]
    _replace(paths[0], table(found) + "\n")
    _replace(paths[1], json.dumps(list(found), indent=1) + "\n")
    try:
        import matplotlib
    except ImportError:
        return paths
    matplotlib.use("Agg")
    _draw(found, folder / "table.png")
    return [*paths, folder / "table.png"]


def _replace(path: pathlib.Path, text: str) -> None:
    """Write the file beside and rename it: a full disk leaves the old one."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def slack(reference: float, runs: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Return the fewest nonzeros among `runs` of (nonzeros, accuracy) that lose at most `loss` against `reference`, or
    None when none does. The name and the formula are ours."""
    return min((nonzeros for nonzeros, reached in runs if reached >= reference - loss - 1e-12), default=None)


def accuracy_density(percent: float, nonzeros: float) -> float:
    """Return percent of accuracy a million nonzero weights (after Bianco et al. 2018, accuracy density)."""
    return percent / (nonzeros / 1e6)


def measured() -> set[str]:
    """Return the keys of a row that are not values on an axis."""
    return {"seeds", *(column for column, _, _ in COLUMNS), *(f"{column}_sd" for column in SPREAD)}


def _number(value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text if spread is None else f"{text} +- {spread:.2g}"


def curves(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of each curve by its name: all values but the sparsity."""
    made: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        name = " ".join(str(row[key]) for key in row if key not in measured() and key != SPARSITY) or "all"
        made.setdefault(name, []).append(row)
    return made


def _slack_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what each curve needs to stay near the dense runs, where there is exactly one dense row."""
    reference = [row for row in found if row.get("masks") == DENSE and row["accuracy_percent"] is not None]
    if len(reference) != 1:
        return []
    lines = []
    for name, part in curves(found).items():
        points = [(row["nonzeros"], row["accuracy_percent"]) for row in part if row["nonzeros"] is not None]
        if not points:
            continue
        needs = [
            f"{kept:.0f} within {loss:g} points"
            for loss in SLACK
            if (kept := slack(reference[0]["accuracy_percent"], points, loss)) is not None
        ]
        density = max(accuracy_density(reached, nonzeros) for nonzeros, reached in points)
        lines.append(
            f"{name}: fewest nonzeros {', '.join(needs) or 'not within 1 point'} of dense; "
            f"at most {density:.4g} % of accuracy a million nonzeros"
        )
    return ["", *lines] if lines else []


def _draw(found: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draw accuracy, or loss, against density, training operations and bytes a step."""
    from matplotlib.figure import Figure

    from sparsetrain.track.axes import logarithmic

    column = "accuracy_percent" if any(row["accuracy_percent"] is not None for row in found) else "loss"
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    panels = (
        ("density of masked weights", lambda row: None if row["sparsity"] is None else 1.0 - row["sparsity"]),
        ("training operations, share of dense", lambda row: row["training_operations"]),
        ("kB sent a step by a rank, gradient and mask", _sent),
    )
    for axes, (title, at) in zip(figure.subplots(1, 3), panels, strict=True):
        for number, (name, part) in enumerate(curves(found).items()):
            points = sorted(
                (x, row[column], row[f"{column}_sd"] or 0.0)
                for row in part
                if (x := at(row)) and row[column] is not None
            )
            if points:
                xs, ys, spread = zip(*points, strict=True)
                marker = "os^vDP*X"[number // 10 % 8]
                axes.errorbar(
                    xs, ys, spread, marker=marker, markersize=4, capsize=2, color=f"C{number % 10}", label=name
                )
        axes.set(xlabel=title, ylabel=column.replace("_", " "))
        logarithmic(axes)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
        else:
            axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes)
    figure.savefig(path, dpi=110)


def _sent(row: Mapping[str, Any]) -> float | None:
    parts = [row[column] for column in ("gradient_kb_a_step", "mask_kb_a_step") if row[column] is not None]
    return sum(parts) or None
