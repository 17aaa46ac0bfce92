"""`config plot` draws, prints its curves, and says in one line what it cannot do."""

import json

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.launch.preview import plot_job

JOB = load_job("fashion_mnist", ("masks.method=topkast", "train.steps=200"))


def test_a_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    assert plot_job(JOB, str(tmp_path / "a.svg"), False) == str(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 10_000


def test_curves_as_json():
    rows = json.loads(plot_job(JOB, None, True))["rows"]
    assert len(rows) == 200
    assert rows[-1]["mask/update_sparsity"] < rows[-1]["mask/sparsity"]


@pytest.mark.parametrize("name", ["a.zzz", "missing/a.png"])
def test_a_place_that_cannot_be_written_is_named(name, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(JobError, match="--out: cannot write"):
        plot_job(JOB, str(tmp_path / name), False)
