"""The table of a sweep: means and spreads against figures by hand."""

import json
import statistics

import pytest

from sparsetrain.track.sweep import Run, accuracy_density, curves, rows, slack, table, write


def run(folder, name, values, seed, **metrics):
    place = folder / name
    place.mkdir()
    row = {"train/step": 10, **{key.replace("_", "/", 1): value for key, value in metrics.items()}}
    (place / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return Run(values=values, seed=seed, folder=place)


@pytest.fixture
def runs(tmp_path):
    def cell(method, sparsity, seed, accuracy):
        values = {"masks.method": method, "masks.sparsity": sparsity}
        kept = round(1000 * (1 - float(sparsity)))
        return run(
            tmp_path, f"{method}-{sparsity}-s{seed}", values, seed,
            eval_accuracy=accuracy, eval_loss=1.0, mask_nonzeros=kept, mask_sparsity=float(sparsity),
            mask_training_operations=0.1, comm_gradient_bytes=5000.0, job_wall_s=2.0,
        )  # fmt: skip

    dense = [run(tmp_path, f"dense-s{s}", {"masks": "dense"}, s, eval_accuracy=0.9, eval_loss=0.5) for s in (0, 1)]
    return [*dense, cell("set", "0.9", 0, 0.88), cell("set", "0.9", 1, 0.86), cell("set", "0.5", 0, 0.897)]


def test_a_row_is_the_mean_over_seeds(runs):
    dense, sparse, other = rows(runs)
    assert (sparse["masks.method"], sparse["masks.sparsity"], sparse["seeds"]) == ("set", "0.9", 2)
    assert sparse["accuracy_percent"] == pytest.approx(87.0)
    assert sparse["accuracy_percent_sd"] == pytest.approx(statistics.stdev([88.0, 86.0]))
    assert sparse["gradient_kb_a_step"] == pytest.approx(0.5)
    assert (other["seeds"], other["accuracy_percent_sd"]) == (1, None)
    assert (dense["sparsity"], dense["training_operations"], dense["nonzeros"]) == (0.0, 1.0, None)


def test_the_table_names_what_a_method_needs_to_stay_near_dense(runs):
    text = table(rows(runs))
    assert "effective_sparsity" not in text  # no run has it
    assert "set: fewest nonzeros 500 within 0.5 points, 500 within 1 points of dense" in text
    assert "87 +- 1.4" in text


def test_a_curve_runs_along_the_sparsity(runs):
    found = curves(rows(runs))
    assert {name: len(part) for name, part in found.items()} == {"dense": 1, "set": 2}


def test_table_data_and_figure_are_written(runs, tmp_path):
    pytest.importorskip("matplotlib")
    paths = write(rows(runs), tmp_path)
    assert [path.name for path in paths] == ["table.txt", "table.json", "table.png"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(paths[1].read_text())) == 3


def test_slack_and_accuracy_beside_parameters():
    assert accuracy_density(75.0, 2_000_000) == 37.5
    points = [(100, 0.90), (50, 0.895), (20, 0.85)]
    assert slack(0.90, points, 0.01) == 50
    assert slack(0.90, points, 0.001) == 100
    assert slack(0.95, points, 0.01) is None
