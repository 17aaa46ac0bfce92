import json

import numpy as np
import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.plan.fill import Random, Recorded, counted, recorded


def test_random_choices_fill_in_as_they_must():
    assert Random().union(1, 0.01) == pytest.approx(0.01)
    assert Random().union(256, 0.01) == pytest.approx(0.9237, abs=1e-4)


def test_a_record_says_of_its_own_ranks_what_was_counted_and_of_more_what_is_likely():
    draw = np.random.default_rng(0)
    size, ranks = 20_000, 64
    likely = draw.beta(0.15, 3.0, size) * 0.3
    choices = [np.flatnonzero(draw.random(size) < likely) for _ in range(4 * ranks)]
    found = Recorded(ranks, counted(choices[:ranks], size))
    assert found.size == size
    assert found.density == pytest.approx(np.mean([len(each) for each in choices[:ranks]]) / size)
    for many in (1, 4, 16, 64, 128, 256):
        union = len(np.unique(np.concatenate(choices[:many]))) / size
        assert found.union(many, found.density) == pytest.approx(union, rel=0.1), many
        assert found.union(many, found.density) < Random().union(many, found.density) + 1e-9
    assert found.union(16, found.density / 2) < found.union(16, found.density)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"ranks": 2, "counts": [1]}',
        '{"ranks": 2, "counts": [3, 0, 0]}',
        '{"ranks": 1, "counts": [1, -1]}',
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "supports.json"
    path.write_text(text)
    with pytest.raises(JobError, match=r"^--supports .*supports.json: "):
        recorded(path)
    path.write_text(json.dumps({"ranks": 2, "counts": [5, 2, 1], "source": "a run"}))
    assert recorded(path) == Recorded(2, (5, 2, 1), "a run")
