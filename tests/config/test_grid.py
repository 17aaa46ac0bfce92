"""A grid of jobs is the product of its axes, each job checked and with a folder of its own."""

import pytest

from sparsetrain.config.errors import JobError
from sparsetrain.config.grid import cells, label, split


def test_commas_part_values_outside_of_brackets_and_quotes():
    fixed, axes = split(["a=1", "b=x, y", "c={name: q, z: 1},w", "d=[1,2]", "e='p,q'"])
    assert fixed == ("a=1", "d=[1,2]", "e='p,q'")
    assert axes == {"b": ["x", "y"], "c": ["{name: q, z: 1}", "w"]}


def test_every_combination_and_seed_is_a_job_in_one_folder():
    found = cells("fashion_mnist", ("masks.method=set,rigl", "masks.sparsity=0.9,0.98", "seed=7"), 2)
    assert [cell.job.name for cell in found[:5]] == [
        "set-0.9-s7",
        "set-0.9-s8",
        "set-0.98-s7",
        "set-0.98-s8",
        "rigl-0.9-s7",
    ]
    assert len(found) == len({cell.job.name for cell in found}) == 8
    assert {cell.job.log.folder for cell in found} == {"runs/fashion_mnist-sweep"}
    last = found[-1]
    assert (last.job.masks.method.name, last.job.masks.sparsity, last.job.seed) == ("rigl", 0.98, 8)
    assert last.values == {"masks.method": "rigl", "masks.sparsity": "0.98"}


def test_without_axes_there_is_a_job_per_seed():
    assert [cell.job.name for cell in cells("fashion_mnist", (), 2, "mine")] == ["job-s0", "job-s1"]


@pytest.mark.parametrize(
    ("overrides", "seeds", "message"),
    [
        (("masks.method=set,rgl",), 1, "masks.method.*rgl.*did you mean 'rigl'"),
        (("masks.sparsity=0.9,1.5",), 1, "masks.sparsity"),
        (("masks.sparsity=0.9,",), 1, "masks.sparsity: the values of an axis are different and not empty"),
        (("masks.sparsity=0.9,0.9",), 1, "masks.sparsity: the values of an axis are different"),
        (("masks.every=10,20", "masks.every=30,40"), 1, "masks.every: is an axis of the grid twice"),
        (("seed=1,2",), 1, "seed: is not an axis"),
        (("masks.sparsity=0.8,0.9",), 6000, "--seeds: the grid has 12000 jobs"),
    ],
)
def test_mistakes_are_one_line(overrides, seeds, message):
    with pytest.raises(JobError, match=message) as error:
        cells("fashion_mnist", overrides, seeds)
    assert "\n" not in str(error.value)


def test_a_label_can_name_a_folder():
    assert (
        label({"a": "{name: rigl, drop_fraction: 0.5}", "b": "../x", "c": "~"}) == "name_rigl_drop_fraction_0.5-x-none"
    )


@pytest.mark.parametrize("path", ["name", "log.folder", "cluster.address", "checkpoint.keep"])
def test_what_says_where_a_run_lies_is_no_axis(path):
    with pytest.raises(JobError, match=f"{path}: is not an axis"):
        cells("fashion_mnist", (f"{path}=1,2",), 1)


def test_equal_values_and_names_that_leave_the_folder_are_refused():
    with pytest.raises(JobError, match="are different"):
        cells("fashion_mnist", ("masks.sparsity=0.9,0.90",), 1)
    with pytest.raises(JobError, match="--name: letters"):
        cells("fashion_mnist", (), 1, "../../escape")
