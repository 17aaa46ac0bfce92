"""A plain smaller model: what is masked away as a whole is not there."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.config.coupling import Coupling
from sparsetrain.engine.state import couplings_of
from sparsetrain.export.format import WEIGHTS, Format, Unfit, write_weights
from sparsetrain.export.fresh import TOLERANCE, difference
from sparsetrain.export.program import PROGRAM, read_program, write_program
from sparsetrain.export.shrink import kept_units, without
from sparsetrain.export.trained import Trained

CONFIG = "config.json"


class Shrunk(Format):
    """A smaller dense model without the neurons, filters and heads that compute nothing, and its torch.export program;
    what belongs to one, the model's couplings() say."""

    def unfit(self, trained: Trained) -> str:
        """See Format."""
        couplings = couplings_of(trained.model)
        if not couplings:
            return "the model has no couplings() that say what is one neuron or head"
        kept = _kept(trained, couplings)
        if all(len(kept[each.name]) == each.units for each in couplings):
            return "no neuron, filter or head is out as a whole"
        return ""

    def write(self, trained: Trained, folder: pathlib.Path) -> None:
        """See Format."""
        couplings = couplings_of(trained.model)
        kept = _kept(trained, couplings)
        small = _small(trained, couplings, kept)
        told: dict[str, Any] = {
            "model": trained.job.model.name,
            "units": {each.name: {"before": each.units, "now": len(kept[each.name])} for each in couplings},
        }
        config = _config(trained, {name: len(units) for name, units in kept.items()})
        if config is not None:
            told["config"] = dataclasses.asdict(config)
        (folder / CONFIG).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        state = small.state_dict()
        tensors = {name: state[name] for name in trained.tensors}
        write_weights(folder, tensors, {"layout": "dense", "tied": trained.tied})
        write_program(small, trained.inputs, folder / PROGRAM)

    def read(self, trained: Trained, folder: pathlib.Path) -> nn.Module:
        """See Format: the model's own class where its Config can say the smaller size, else the program."""
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if "config" not in told:
            return read_program(folder / PROGRAM)
        cls: Any = registry.load("model", told["model"])
        model = cls(adapter(cls.Config).validate_python(told["config"])).eval()
        tensors = load_file(folder / WEIGHTS)
        model.load_state_dict({**tensors, **{name: tensors[first] for name, first in trained.tied.items()}})
        return model


def _kept(trained: Trained, couplings: Sequence[Coupling]) -> dict[str, Tensor]:
    """Return the units that stay: without silent ones where the outputs show that those are."""
    kept = kept_units(trained, couplings, silent=True)
    try:
        if _apart(without(trained.model, couplings, kept), trained) <= TOLERANCE:
            return kept
    except Exception:  # whatever a forward pass does that counts on the number of its units; `_small` says it
        pass
    return kept_units(trained, couplings, silent=False)


def _small(trained: Trained, couplings: Sequence[Coupling], kept: dict[str, Tensor]) -> nn.Module:
    """Return the smaller model. Raises Unfit where it does not compute the same."""
    small = without(trained.model, couplings, kept)
    try:
        apart = _apart(small, trained)
    except Exception as error:  # see above
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise Unfit(f"the model's forward pass counts on the number of its units ({reason})") from error
    if apart > TOLERANCE:
        raise Unfit(f"without its inactive units the model computes something else (by {apart:.1e})")
    return small


@torch.no_grad()
def _apart(small: nn.Module, trained: Trained) -> float:
    found = difference(small(trained.inputs), trained.outputs)
    return math.inf if math.isnan(found) else found


def _config(trained: Trained, units: dict[str, int]) -> Any:
    """Return the Config of the smaller model; None where the model cannot say it."""
    return trained.model.resized(units) if hasattr(trained.model, "resized") else None
