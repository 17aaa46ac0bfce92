"""Run folders that look like real ones, written by hand."""

from __future__ import annotations

import json
import pathlib
from typing import Any

LAYERS = ("blocks.0.attention.qkv.weight", "blocks.0.mlp.up.weight")

# Every figure of a report, and a text that would do harm where it is not taken as one.
FIGURES = {
    *("loss-step", "loss-wall", "loss-bytes", "sent", "total", "step-time", "time", "sparsity", "churn", "density"),
    *("residual", "layers", "faults", "world"),
}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\u202e"


def rows(steps: int = 60, every: int = 2) -> list[dict[str, float]]:
    """Return rows of metrics as the engine writes them."""
    found = []
    for step in range(every, steps + 1, every):
        row: dict[str, float] = {
            "train/step": step,
            "train/samples": 8 * step,
            "train/loss": 1.0 + 4.0 / step,
            "train/lr": 0.003,
            "grad/density": 0.05,
            "grad/residual_norm": 1.0 + step / 100,
            "comm/gradient_bytes": 15582.6 * step,
            "comm/mask_bytes": 7.0 * (step // 20),
            "comm/total_bytes": 15600.0 * step,
            "comm/gradient_bytes_per_step": 15582.6,
            "comm/mask_bytes_per_step": 0.35,
            "comm/dense_bytes_per_step": 448128.0,
            "time/data_s": 0.001,
            "time/forward_backward_s": 0.04,
            "time/exchange_s": 0.03,
            "time/optimizer_s": 0.01,
            "time/checkpoint_s": 0.0,
            "time/step_s": 0.081,
            "mask/sparsity": 0.9,
            "mask/epoch": step // 20,
            "job/world_size": 4 if step != 30 else 3,
            "job/wall_s": 0.09 * step,
        }
        if step % 20 == 0:
            row |= {"eval/loss": 1.1 + 4.0 / step, "eval/bits_per_byte": 1.6, "mask/churn": 2.0 / step}
        found.append(row)
    return found


def write_run(folder: pathlib.Path, steps: int = 60, name: str | None = None) -> pathlib.Path:
    """Write a whole run folder with a fault, an alert, layers, two decisions of the planner; return it."""
    folder.mkdir(parents=True)
    lines(folder / "metrics.jsonl", rows(steps))
    lines(
        folder / "layers.jsonl",
        [
            {
                "train/step": at,
                **{f"{kind}/{name}": 0.1 + at / 1000 for name in LAYERS for kind in ("density", "churn")},
            }
            for at in range(20, steps + 1, 20)
        ],
    )
    incident = {"at": 1009.0, "cause": "rank 3 on vm: gone", "step": 30, "lost": [3], "left": 0, "seconds": 2.5}
    ended = {"status": "finished", "began": 1000.0, "ended": 1020.0, "cause": None, "incidents": [incident]}
    (folder / "run.json").write_text(json.dumps({"name": name or folder.name, "attempts": 1, **ended}))
    placed = [{"rank": n, "host": "vm", "node": "00213dbacfcf70ae", "pid": 100 + n} for n in range(4)]
    (folder / "launch.json").write_text(json.dumps({"launcher": "ray", "workers": 4, "placed": placed}))
    (folder / "env.json").write_text('{"versions": {"torch": "2.13.0"}}')
    lines(folder / "events.rank00000.jsonl", [{"at": 1015.0, "step": 50, "alert": "slow", "text": "0.4 at step 50"}])
    ways = [("dense", 0.1, 0.11, 448128), ("allgather", 0.05, 0.06, 15582), ("lowrank", 0.07, None, 20000)]
    keys = ("name", "predicted_s", "measured_s", "bytes_per_step")
    choice = {
        "chosen": "allgather",
        "why": "quickest",
        "candidates": [dict(zip(keys, way, strict=True)) for way in ways],
    }
    decisions = [{"exchange": 4, **choice}, {"exchange": 40, **choice}]
    (folder / "regimes.json").write_text(json.dumps({"version": 1, "decisions": decisions}))
    return folder


def lines(path: pathlib.Path, values: list[Any]) -> None:
    """Write a value a line."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
