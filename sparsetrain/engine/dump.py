"""What was wrong when gradients had stopped being numbers, for whoever looks at it afterwards."""

from __future__ import annotations

import json
import pathlib

import torch

from sparsetrain.engine.state import RunState

MOST = 100  # tensors that are named


def dump(state: RunState, folder: pathlib.Path, losses: list[float]) -> pathlib.Path | None:
    """Write which of this rank's gradients are not finite, the samples and the last losses, and return the file; None
    where it cannot be written."""
    found = []
    for name, parameter in state.parameters.items():
        grad = parameter.grad
        if grad is not None and not bool(torch.isfinite(grad).all()):
            wrong = int((~torch.isfinite(grad)).sum())
            largest = float(parameter.detach().abs().max())
            found.append({"name": name, "not_finite": wrong, "of": grad.numel(), "largest_weight": largest})
    about = {
        "step": state.step,
        "rank": state.world.rank,
        "node": state.world.node,
        "losses": [repr(loss) for loss in losses[-20:]],
        "samples": state.sampler.indices(max(0, state.at.position - state.sampler.batch)).tolist(),
        "gradients": found[:MOST],
    }
    path = folder / "dumps" / f"step_{state.step:08d}.rank{state.world.rank:05d}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1), encoding="utf-8")
    except OSError:  # it only informs
        return None
    return path
