"""Jobs that are known to work, as functions. `sparsetrain config show NAME` prints one in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tree = dict[str, Any]


def quickstart() -> Tree:
    """A byte-level GPT on the text of Python's own library: 2 workers, sparse exchange, 90 % sparse weights (RigL).

    Local steps, because AdamW and a top-k of single gradients do not go together. A quarter of the active tenth every
    five steps is half a percent of all entries a step. docs/records/quickstart.md holds the choice.
    """
    return {
        "name": "quickstart",
        "model": {"name": "gpt", "layers": 4, "width": 128, "heads": 4, "context": 128},
        "data": {"name": "text"},
        "optimizer": {"name": "adamw", "learning_rate": 3e-2, "weight_decay": 0.01},
        "train": {"steps": 320, "batch_size": 8, "evaluate_every": 80},
        "exchange": {"regime": "sparse", "density": 0.25, "every": 5},
        "masks": {"method": {"name": "rigl"}, "sparsity": 0.9, "every": 40},
        "baseline": ["optimizer.learning_rate=3e-3"],
    }


def fashion_mnist() -> Tree:
    """A small CNN on Fashion-MNIST: SGD with momentum, top 5 % of the active gradient a step, 90 % sparse weights."""
    return {
        "name": "fashion_mnist",
        "model": "cnn",
        "data": "fashion_mnist",
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "train": {"steps": 1000, "batch_size": 64},
        "exchange": {"regime": "sparse", "density": 0.05, "warmup": 0.1},
        "masks": {"method": {"name": "rigl"}, "sparsity": 0.9},
    }


def text_gpt() -> Tree:
    """The quickstart's GPT for longer: 2000 steps, dense weights, five local steps, the top 5 % of the difference.

    docs/records/training.md holds the choice.
    """
    return {
        "name": "text_gpt",
        "model": {"name": "gpt", "layers": 4, "width": 128, "heads": 4, "context": 128},
        "data": {"name": "text"},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01},
        "train": {"steps": 2000, "batch_size": 8, "evaluate_every": 200},
        "exchange": {"regime": "sparse", "density": 0.05, "every": 5},
    }


def wan() -> Tree:
    """Links of up to 10 Mbit/s: ten local steps of AdamW, the top tenth of their difference in int8.

    From about 100 Mbit/s on `ethernet_1g` is sooner at a loss, since it needs fewer steps. A larger learning rate than
    dense training's suits it, a smaller one when `every` grows. docs/records/when.md.
    """
    return _over({"regime": "sparse", "density": 0.1, "every": 10, "values": "int8"}, learning_rate=5e-3, name="wan")


def ethernet_1g() -> Tree:
    """Links of 100 Mbit/s to 1 Gbit/s: five local steps of AdamW, the top twentieth of their difference.

    docs/records/when.md holds the choice.
    """
    return _over({"regime": "sparse", "density": 0.05, "every": 5}, learning_rate=5e-3, name="ethernet_1g")


def ethernet_10g() -> Tree:
    """Links of about 10 Gbit/s: every step's gradients whole, or as two factors, whichever the planner finds sooner.

    What top-k saves on such links it loses in steps with AdamW. docs/records/when.md.
    """
    return _over({"regime": "auto", "every": 1, "allow": ["dense", "packed", "lowrank"]}, name="ethernet_10g")


def datacenter() -> Tree:
    """Links that are faster than the processors: every step's gradients whole in bf16, masked ones without zeros.

    Compression rarely pays here, and the planner says when it does not. docs/concepts/when-it-pays.md.
    """
    return _over({"regime": "auto", "every": 1, "allow": ["dense", "packed"]}, name="datacenter")


def _over(exchange: Tree, name: str, learning_rate: float = 3e-3) -> Tree:
    """Return text_gpt with another exchange."""
    tree = text_gpt()
    optimizer = {**tree["optimizer"], "learning_rate": learning_rate}
    return {**tree, "name": name, "optimizer": optimizer, "exchange": exchange}


JOBS = (quickstart, fashion_mnist, text_gpt, wan, ethernet_1g, ethernet_10g, datacenter)
PRESETS: dict[str, Callable[[], Tree]] = {f.__name__: f for f in JOBS}
