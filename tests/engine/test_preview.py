"""The preview says what runs then do: the same steps, the same sparsities, the same densities."""

import json

import pytest

from sparsetrain.collective.transport import Alone
from sparsetrain.collective.world import World
from sparsetrain.config.load import load_job
from sparsetrain.engine.preview import preview
from sparsetrain.engine.trainer import train

SMALL = (
    "model={name: gpt, layers: 1, width: 32, heads: 2, context: 32}",
    "train={steps: 50, batch_size: 2, evaluate_every: 50, evaluate_batches: 1}",
    "data={name: text, context: 32}",
    "masks.every=10",
    "masks.sparsity=0.8",
    "log={every: 1, wandb: {mode: disabled}}",
)


@pytest.mark.parametrize("method", ["rigl", "gmp", "acdc", "topkast", "static", "lottery", "{name: mest, soft: true}"])
def test_a_run_follows_its_preview(method, tmp_path):
    every = 1 if method in ("acdc", "lottery") else 5  # their phases are shares of the run
    own = (f"exchange={{density: 0.1, warmup: 0.5, every: {every}}}", f"masks.method={method}")
    job = load_job("text_gpt", (*SMALL, *own))
    train(job, World(rank=0, size=1, local_rank=0, transport=Alone()), tmp_path, lambda line: None)
    measured = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = preview(job)
    assert [row["train/step"] for row in rows] == [row["train/step"] for row in measured] == list(range(1, 51))
    epoch = 0
    for expected, row, later in zip(rows, measured, [*rows[1:], rows[-1]], strict=True):
        epoch += int(expected.get("mask/update", 0.0))
        assert row["mask/epoch"] == epoch
        assert row["mask/sparsity"] == pytest.approx(later["mask/sparsity"], abs=5e-3)  # recorded after the update
        assert row["train/lr"] == pytest.approx(3e-3 * expected["train/lr"])
        if expected["train/step"] % every == 0:
            assert row["grad/density"] == pytest.approx(expected["grad/density"])


def test_what_is_sent_is_the_product_over_the_steps_of_an_exchange():
    rows = preview(load_job("quickstart"))
    assert {round(row["grad/sent"], 12) for row in rows} == {0.25 * 0.1 / 5}
    assert [row["train/step"] for row in rows if "mask/update" in row] == [40, 80, 120, 160, 200]
    assert [row["mask/drop_fraction"] for row in rows if "mask/update" in row][-1] < 0.03
    dense = preview(load_job("quickstart", ("exchange={regime: dense}", "masks=null", "train.steps=3")))
    assert [(row["grad/sent"], row["mask/sparsity"]) for row in dense] == [(1.0, 0.0)] * 3
