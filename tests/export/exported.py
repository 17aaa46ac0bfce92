"""Small trained runs for the tests of exports."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import torch
from torch import nn

from sparsetrain.collective.world import World
from sparsetrain.config.component import NoOptions
from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.config.load import parse, to_yaml
from sparsetrain.engine.state import build
from sparsetrain.engine.trainer import train
from sparsetrain.export.trained import Trained
from sparsetrain.masks.maskset import MaskSet

SHARED = {
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "train": {"steps": 4, "batch_size": 4, "evaluate_every": 4, "evaluate_batches": 2},
    "exchange": {"regime": "dense"},
    "checkpoint": {"every": 2, "keep": 9},
    "log": {"wandb": {"mode": "disabled"}},
}
IMAGES = "exported:Images"
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"model": {"name": "mlp", "hidden": [64, 32]}, "data": IMAGES},
    "lenet": {"model": "mlp", "data": IMAGES},
    "cnn": {"model": {"name": "cnn", "channels": 4, "hidden": 16}, "data": IMAGES},
    "gpt": {
        "model": {"name": "gpt", "layers": 2, "width": 32, "heads": 4, "context": 16},
        "data": {"name": "text", "context": 16},
    },
}

# What is not made of whole blocks.
EXCLUDED = {("block", "mlp"): ["last"], ("block", "cnn"): ["last", "second.weight"]}


class Images:
    """Noise in the shape of Fashion-MNIST."""

    Config = NoOptions
    train_size, eval_size = 64, 32

    def __init__(self, config: NoOptions) -> None:
        self.images = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def train_batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[indices], indices % 10

    eval_batch = train_batch


def finished(folder: pathlib.Path, model: str, masks: dict[str, Any] | None, **more: Any) -> pathlib.Path:
    """Train a small model in this process and return its run folder, `folder/runs/MODEL`."""
    job = parse({"name": model, **SHARED, **MODELS[model], "masks": masks, **more})
    run = folder / "runs" / model
    train(job, World(), run, lambda line: None)
    (run / "job.yaml").write_text(to_yaml(job))
    return run


def trained_of(model: str, structure: str, sparsity: float | None = None) -> Trained:
    """Return a model that no run has trained, with masks of a structure."""
    options = {"block": {"rows": 8, "columns": 8}}.get(structure, {})
    share: dict[str, Any] = {"sparsity": 0.75 if sparsity is None else sparsity}
    if structure == "n:m":
        share = {"sparsity": 0.5, "distribution": "uniform"}
    masks = {
        "method": "static",
        "structure": {"name": structure, **options},
        "exclude": EXCLUDED.get((structure, model), []),
    }
    job = parse({"name": model, **SHARED, **MODELS[model], "masks": {**masks, **share}})
    state = build(job, World())
    state.close()
    assert state.masks is not None
    state.model.eval()
    inputs = state.data.eval_batch(torch.arange(4))[0]
    with torch.no_grad():
        outputs = state.model(inputs)
    return Trained(
        job=job,
        folder=pathlib.Path("nowhere"),
        checkpoint="step_00000000",
        about=None,
        model=state.model,
        masks=state.masks.masks,
        data={},
        inputs=inputs,
        outputs=outputs,
    )


class Two(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between: nn.Module, norm: tuple[Slice, ...] = ()) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(6, 8), between, nn.Linear(8, 3)
        self.norm = norm

    def couplings(self) -> list[Coupling]:
        makes = (Slice("first.weight"), Slice("first.bias"), *self.norm)
        return [Coupling(name="hidden", kind="neuron", units=8, makes=makes, reads=(Slice("last.weight", axis=1),))]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(self.first(x)))


def two_layers(model: nn.Module, out_rows: list[int], out_columns: list[int]) -> Trained:
    """Return it with neurons that have nothing coming in and no bias, and others that have nothing going out."""
    torch.manual_seed(0)
    masks = {"first.weight": torch.ones(8, 6).bool(), "last.weight": torch.ones(3, 8).bool()}
    masks["first.weight"][out_rows] = False
    masks["last.weight"][:, out_columns] = False
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
        model.get_parameter("first.bias")[out_rows] = 0.0
    inputs = torch.randn(5, 6)
    outputs = model.eval()(inputs).detach()
    job = types.SimpleNamespace(model=types.SimpleNamespace(name="two"))
    return Trained(
        job=job, folder=None, checkpoint="", about=None, model=model, masks=MaskSet(masks), data={}, inputs=inputs,
        outputs=outputs,
    )  # fmt: skip
