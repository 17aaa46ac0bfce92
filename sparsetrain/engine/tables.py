"""What is shown of a run beside its row at an evaluation: layers, ranks, the residual's values, the planner's choices.

All ranks bring a few numbers together for the table of ranks; the rest is rank 0's and costs a pass over its residual.
"""

from __future__ import annotations

import json
import math
import resource
from typing import Any

import torch
from torch import Tensor

from sparsetrain.engine.state import RunState
from sparsetrain.engine.window import Window
from sparsetrain.track.notes import Histogram, Note, Table

BINS = 64
SAMPLED = 1 << 20  # values of the residual, evenly apart, that a histogram looks at
LAYERS = ("name", "shape", "parameters", "density", "active", "way", "regime", "residual_norm", "weight_norm")
RANKS = ("rank", "node", "step_s", "exchange_s", "data_s", "sent_bytes", "residual_norm", "memory_gib")
DECISIONS = ("exchange", "mask_epoch", "chosen", "candidate", "predicted_s", "measured_s", "bytes_per_step", "why")


def own_figures(state: RunState, window: Window) -> dict[str, Any]:
    """Return what this rank says of itself for the table of ranks."""
    figures = window.figures(state)
    found = {
        "node": state.world.node,
        "step_s": figures["time/step_s"],
        "exchange_s": figures["time/exchange_s"],
        "data_s": figures["time/data_s"],
        "sent_bytes": figures["comm/total_bytes"],
        "residual_norm": figures["grad/residual_norm"],
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return {key: _finite(value) for key, value in found.items()}


def gather_ranks(state: RunState, window: Window) -> Table | None:
    """Return the table of ranks on rank 0, None elsewhere. Collective."""
    own = json.dumps(own_figures(state, window)).encode()
    everyone = [json.loads(each) for each in state.world.transport.gather_bytes(own, "control")]
    if state.world.rank != 0:
        return None
    rows = tuple((rank, *(each.get(key) for key in RANKS[1:])) for rank, each in enumerate(everyone))
    return Table("ranks", RANKS, rows)


@torch.no_grad()
def notes(state: RunState) -> list[Note]:
    """Return what rank 0 has to show: layers, residual, decisions."""
    residuals: dict[str, Tensor] = {}
    regimes: dict[str, str] = {}
    exchange = state.exchange
    for channel, regime in zip(exchange.channels, exchange.regimes, strict=True):
        regimes |= dict.fromkeys(channel.bucket.names, regime.config.regime)
        if "residual" in channel.kept:
            whole, edges = channel.read("residual"), channel.edges()
            residuals |= {name: whole[edges[i] : edges[i + 1]] for i, name in enumerate(channel.bucket.names)}
    found: list[Note] = [_layers(state, residuals, regimes)]
    values = [part for part in residuals.values() if part.numel()]
    if values:
        found.append(histogram("residual", values))
    if exchange.planner is not None and exchange.planner.decisions:
        found.append(_decisions(exchange.planner.decisions))
    return found


def _layers(state: RunState, residuals: dict[str, Tensor], regimes: dict[str, str]) -> Table:
    masks = state.masks.masks.masks if state.masks is not None else {}
    rows, ways = [], state.engine.ways()
    for name, parameter in state.parameters.items():
        count = state.elements(name)
        active = int(masks[name].sum()) if name in masks else count
        residual = float(residuals[name].norm()) if name in residuals else None
        weight = float(parameter.detach().norm()) if count else None
        shape = "x".join(map(str, masks[name].shape if name in masks else parameter.shape))
        way, regime = ways.get(name, "masked" if name in masks else "dense"), regimes.get(name, "dense")
        norms = (_finite(residual), _finite(weight))
        rows.append((name, shape, count, active / max(1, count), active, way, regime, *norms))
    return Table("layers", LAYERS, tuple(rows))


def histogram(name: str, parts: list[Tensor]) -> Histogram:
    """Return the histogram of the finite values of some tensors, of evenly chosen ones where they are many."""
    every = -(-sum(part.numel() for part in parts) // SAMPLED)
    values = torch.cat([part.flatten()[::every].float() for part in parts]).cpu()
    values = values[values.isfinite()]
    most = float(values.abs().max()) if values.numel() else 0.0
    most = most or 1.0
    counts = torch.histc(values, BINS, -most, most)
    edges = torch.linspace(-most, most, BINS + 1)
    return Histogram(name, tuple(int(count) for count in counts), tuple(edges.tolist()))


def _decisions(decisions: Any) -> Table:
    rows = []
    for decision in decisions:
        row = decision.row()
        for way in row["candidates"]:
            numbers = (way["predicted_s"], way["measured_s"], way["bytes_per_step"])
            rows.append((row["exchange"], row["mask_epoch"], row["chosen"], way["name"], *numbers, row["why"]))
    return Table("decisions", DECISIONS, tuple(rows))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
