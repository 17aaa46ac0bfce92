"""layers.jsonl holds what the masks are like at evaluations."""

import pytest
import torch

from sparsetrain.engine.layers import LayerSink
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.track.jsonl import read


def masks(*active: int, size: int = 19) -> MaskSet:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(active)] = True
    return MaskSet({"a.weight": mask, "b.weight": torch.ones(2, 3, dtype=torch.bool)})


def test_density_and_churn_of_each_layer_at_evaluations(tmp_path):
    now = [masks(0, 1, 2, 18)]
    sink = LayerSink(lambda: now[0], tmp_path / "layers.jsonl", 0)
    sink.log({"train/step": 5, "train/loss": 1.0})
    sink.log({"train/step": 10, "eval/loss": 1.0})
    now[0] = masks(0, 5, 6, 7)
    sink.log({"train/step": 15, "train/loss": 1.0, "mask/churn": 0.75})
    now[0] = masks(0, 5, 17, 18)
    sink.log({"train/step": 20, "eval/loss": 1.0})
    sink.close("finished")
    first, second = read(tmp_path / "layers.jsonl")
    assert first == {
        "train/step": 10,
        "weights/a.weight": 19,
        "density/a.weight": pytest.approx(4 / 19),
        "weights/b.weight": 6,
        "density/b.weight": 1.0,
    }
    assert second["train/step"] == 20
    assert second["churn/a.weight"] == 0.5  # 5 and 17 are new since step 10
    assert second["churn/b.weight"] == 0.0


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    for begun in (0, 10):
        sink = LayerSink(lambda: masks(1), tmp_path / "layers.jsonl", begun)
        for step in (10, 20):
            if step > begun:
                sink.log({"train/step": step, "eval/loss": 1.0})
        sink.close("finished")
    assert [row["train/step"] for row in read(tmp_path / "layers.jsonl")] == [10, 20]
