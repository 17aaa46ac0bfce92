"""The model card: what an export holds, how it was trained, how it is loaded."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from sparsetrain.config.load import to_tree
from sparsetrain.export.table import Row, as_markdown, cells
from sparsetrain.export.trained import Trained
from sparsetrain.track.provenance import without_secrets
from sparsetrain.worker.existing import status
from sparsetrain.worker.record import environment

# Sections of the job that say how it was trained; where it ran and what was logged is not of interest.
TOLD = ("seed", "model", "data", "optimizer", "engine", "train", "exchange", "masks")
HOW = {
    "safetensors": "`safetensors.torch.load_file('{file}')`: tensors by name, dense.",
    "load.py": "`load.py` beside it: `load.state_dict()` gives tensors by name, dense, `load.tensors()` as they are "
    "stored; `load.attach(model)` fills a model.",
    "torch.export.load": "`torch.export.load('program.pt2').module()(x)` where the model's class is not there; its "
    "tensors are in `{file}`, its sizes in `config.json`.",
    "onnxruntime": "`onnxruntime.InferenceSession('{file}')`.",
}


def machine(threads: int) -> str:
    """Return where latencies were measured, in words."""
    name = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def facts(trained: Trained) -> dict[str, Any]:
    """Return what is known of the run, for programs; nothing secret."""
    about, masks = trained.about, trained.masks
    tree = to_tree(trained.job)
    known = status(trained.folder)
    return without_secrets(
        {
            "run": trained.job.name,
            "checkpoint": trained.checkpoint,
            "step": about.step,
            "samples": about.samples,
            "workers": about.world_size,
            "training_s": round(about.wall_s, 3),
            "gradient_bytes_sent": about.sent_bytes.get("gradient"),
            "evaluation": _evaluation(trained, known),
            "weights": sum(tensor.numel() for tensor in trained.tensors.values()),
            "masked_weights": sum(mask.numel() for mask in masks.masks.values()),
            "sparsity": masks.sparsity(),
            "mask_epoch": masks.epoch,
            "density": {name: forward for name, (forward, _) in masks.densities.items()},
            "weights_digest": about.weights_digest,
            "masks_digest": masks.digest().hex(),
            "data": trained.data,
            "versions": {**_trained_with(trained), "export": environment()["versions"]},
            "job": {key: tree[key] for key in TOLD if tree.get(key) is not None},
        }
    )


def card(trained: Trained, told: Mapping[str, Any], rows: Sequence[Row], refused: Mapping[str, str], where: str) -> str:
    """Return the card in Markdown; `where` is the machine of the latencies."""
    loss = ", ".join(f"{key} {value:.4f}" for key, value in told["evaluation"].items()) or "not evaluated at this step"
    workers = "1 worker" if told["workers"] == 1 else f"{told['workers']} workers"
    lines = [
        f"# {told['run']}",
        "",
        f"A `{trained.job.model.name}` of {told['weights']} weights, trained by sparsetrain on "
        f"`{trained.job.data.name}`; {told['sparsity']:.2%} of its {told['masked_weights']} masked weights are zero.",
        "",
        "## How it was trained",
        "",
        f"- {told['step']} steps, {told['samples']} samples, {workers}, {told['training_s']:.1f} s",
        f"- evaluation: {loss}",
        f"- data: {_flat(told['data'])}",
        f"- optimizer: {_flat(told['job']['optimizer'])}",
        f"- exchange of gradients: {_exchange(told['job']['exchange'])}",
        f"- masks: {_masks(told['job'].get('masks'), told['mask_epoch'])}",
        f"- versions: {_flat(told['versions']['trained'])} (trained), {_flat(told['versions']['export'])} (exported)",
        f"- digests (blake2b): weights as trained {told['weights_digest']}, masks {told['masks_digest']}",
        "",
        *_densities(told["density"]),
        "All settings of the job are in `export.json`.",
        "",
        "## What is here",
        "",
        as_markdown(cells(rows, trained.bound_bytes)),
        "",
        f"Latencies are medians of a forward pass ({where}), formats taking turns. Bytes are of the file with the "
        f"weights; the bound is the active values and the entropy of the masks, {trained.bound_bytes:.0f} bytes. "
        "Differences are of outputs, relative to the largest where that is above 1.",
        "",
        "## How to load it",
        "",
        *(f"- `{row.file}`: {_how(row)}" for row in rows if row.file),
        "",
    ]
    if refused:
        lines += ["## What does not fit", "", *(f"- {name}: {why}" for name, why in refused.items()), ""]
    return "\n".join(lines)


def _how(row: Row) -> str:
    known = HOW.get(row.alone.get("how", ""), "see its format.")
    return known.replace("{file}", row.file.rpartition("/")[2])


def _evaluation(trained: Trained, known: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of the evaluation at the exported step, as far as there are any."""
    result = known.get("result")
    if isinstance(result, dict) and result.get("steps") == trained.about.step:
        found = {key: value for key, value in result.items() if str(key).startswith("eval/")}
        if numbers := {key: value for key, value in found.items() if isinstance(value, float) and math.isfinite(value)}:
            return numbers
    return {} if trained.about.eval_loss is None else {"eval/loss": trained.about.eval_loss}


def _trained_with(trained: Trained) -> dict[str, Any]:
    path = trained.folder / "env.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["versions"] if path.is_file() else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        found = {}
    return {"trained": found if isinstance(found, dict) else {}}


def _densities(density: Mapping[str, float]) -> list[str]:
    if not density:
        return []
    return [
        "| masked tensor | density |",
        "| --- | ---: |",
        *(f"| `{name}` | {each:.4f} |" for name, each in density.items()),
        "",
    ]


def _exchange(tree: Mapping[str, Any]) -> str:
    every = "each step" if tree["every"] == 1 else f"every {tree['every']} steps"
    dense = tree["regime"] in ("dense", "packed")
    density = "" if dense else f", density {tree['density']}, {tree['error_feedback']['name']}"
    return f"{tree['regime']}{density}, {every}, {tree['collective']['name']}, values {tree['values']['name']}"


def _masks(tree: Mapping[str, Any] | None, epoch: int) -> str:
    if tree is None:
        return "none: dense weights"
    method, structure = tree["method"]["name"], tree["structure"]["name"]
    return f"{method} to sparsity {tree['sparsity']}, {structure}, {tree['distribution']['name']}, epoch {epoch}"


def _flat(tree: Mapping[str, Any]) -> str:
    # A run folder's files could hold anything: here it is one line.
    return " ".join(", ".join(f"{key} {value}" for key, value in tree.items()).split()) or "unknown"
