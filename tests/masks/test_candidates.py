import pytest
import torch
from torch import nn

from sparsetrain.collective.simulated import Simulation
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Masks
from sparsetrain.engine.sparse_mean import sparse_mean
from sparsetrain.masks.candidates import affordable
from sparsetrain.masks.controller import MaskController

SHAPE = (120, 160)


def local(rank: int) -> torch.Tensor:
    """A gradient that ranks mostly share, as in training: a common part of uneven size and their own noise."""
    shared = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9)).pow(3)
    return shared + 0.3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(rank))


def grown(world, growth: str, broken: int | None = None, structure: dict | str = "unstructured", **options):
    """Return what an update grows, and the bytes that this rank sent for its scores."""
    parameters = {"w": nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)))}
    method = {"name": "rigl", "growth": growth, **options}
    tree = {"method": method, "sparsity": 0.9, "every": 10, "structure": structure}
    masks = MaskController(
        adapter(Masks).validate_python(tree),
        parameters,
        maskable=["w"],
        seed=0,
        steps=100,
        gather=world.transport.gather_bytes,
        mean=lambda tensors: world.transport.mean(tensors, "mask"),
        sparse_mean=lambda values, places, wanted: sparse_mean(values, places, wanted, world.transport, "mask"),
    )
    gradient = local(world.rank)
    if broken == world.rank:
        gradient[3, 4] = float("nan")
    masks.observe(10, {"w": gradient})
    sent = world.transport.meter.sent["mask"]
    old = masks.masks.masks["w"]
    report = masks.step(10, None)
    return (None if report is None else masks.masks.masks["w"] & ~old), sent


@pytest.mark.parametrize(
    ("structure", "share", "recall"),
    [
        ("unstructured", 0.03, 0.8),
        ("unstructured", 0.045, 0.95),
        ({"name": "block", "rows": 4, "columns": 4}, 0.045, 0.95),
        ("fan_in", 0.06, 0.85),
    ],
)
def test_candidates_find_nearly_all_that_the_dense_rule_grows_at_a_share_of_its_bytes(structure, share, recall):
    dense, whole = Simulation(4).run(lambda world: grown(world, "dense", structure=structure))[0]
    found = Simulation(4).run(lambda world: grown(world, "candidates", structure=structure, share=share))
    assert all(torch.equal(found[0][0], each) for each, _ in found)
    assert int((found[0][0] & dense).sum()) >= recall * int(dense.sum()) > 0
    assert all(sent < share * whole + 500 for _, sent in found)  # headers and lengths


def test_one_rank_alone_grows_what_the_dense_rule_grows():
    (dense, _), (found, _) = (Simulation(1).run(lambda world, g=g: grown(world, g))[0] for g in ("dense", "candidates"))
    assert torch.equal(dense & found, dense)  # a place that the dense rule gives back to a dropped weight is free here


@pytest.mark.parametrize("growth", ["dense", "candidates"])
def test_a_gradient_that_is_not_finite_on_one_rank_puts_the_update_off_on_all(growth):
    found = Simulation(3).run(lambda world: grown(world, growth, broken=1))
    assert [each for each, _ in found] == [None, None, None]


@pytest.mark.parametrize("size", [1000, 1_000_000])
@pytest.mark.parametrize("share", [0.001, 0.045, 1.0])
@pytest.mark.parametrize("grown", [0, 1, 30, 900])
def test_as_many_candidates_as_the_share_pays_for_but_never_fewer_than_grow(grown, size, share):
    proposals, means = affordable(grown, size, share)
    assert grown <= means <= size and grown <= proposals <= size
    # Two bytes and a place of log2(size / count) + 2 bits or more are what a proposal with its mean takes at least.
    assert proposals == grown or 1.25 * proposals + 2 * means <= share * 8 * size
    richer = affordable(grown, size, min(1.0, 2 * share))
    assert richer[0] >= proposals and richer[1] >= means


def test_the_mean_of_absolute_values_would_grow_other_weights():
    """What ranks disagree about cancels in the mean: |mean g|, never mean |g|."""
    noisy = [torch.randn(4000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    right = (noisy[0] + noisy[1]).abs().topk(120).indices
    wrong = (noisy[0].abs() + noisy[1].abs()).topk(120).indices
    assert len(set(right.tolist()) & set(wrong.tolist())) < 90
