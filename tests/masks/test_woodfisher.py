import pytest
import torch
from moments import method, moment
from torch import nn

from sparsetrain.config.component import adapter
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.methods.woodfisher import inverse_fisher

SHAPE, STEPS, DAMPING = (4, 6), 5, 0.05


def gradients(count: int = STEPS) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(3))


def hessian(signal: torch.Tensor, block: int) -> torch.Tensor:
    """The whole matrix, built entry by entry: zero between blocks."""
    flat = signal.double().reshape(len(signal), -1)
    found = DAMPING * torch.eye(flat.shape[1], dtype=torch.float64) + flat.T @ flat / len(flat)
    number = torch.arange(flat.shape[1]) // block
    return torch.where(number.unsqueeze(0) == number.unsqueeze(1), found, 0.0)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_recursion_gives_the_direct_inverse(count):
    signal = gradients(count).double().view(1, count, -1)
    direct = torch.linalg.inv(hessian(gradients(count), 24))
    assert torch.allclose(inverse_fisher(signal, DAMPING)[0], direct, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block", [1, 5, 6, 24, 100])
def test_scores_are_those_of_the_whole_matrix_inverted(block):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(SHAPE, dtype=torch.bool)
    found = method("woodfisher", block=block, damping=DAMPING).saliency(moment(weight, mask, 9, signal=gradients()))
    diagonal = torch.linalg.inv(hessian(gradients(), block)).diagonal().view(SHAPE)
    assert torch.allclose(found, weight.double().square() / (2 * diagonal), rtol=1e-9)


def test_many_blocks_are_taken_some_at_a_time(monkeypatch):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    given = moment(weight, torch.ones(SHAPE, dtype=torch.bool), 9, signal=gradients())
    rule = method("woodfisher", block=5, damping=DAMPING)
    whole = rule.saliency(given)
    monkeypatch.setattr("sparsetrain.masks.methods.woodfisher.AT_ONCE", 50)
    assert torch.equal(rule.saliency(given), whole)


def test_inactive_weights_have_no_part_in_the_matrix():
    """Their scores aside, those of the others are what the matrix of the active alone gives."""
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.6
    found = method("woodfisher", damping=DAMPING).saliency(moment(weight, mask, 9, signal=gradients()))
    active = hessian(gradients(), 24)[mask.flatten()][:, mask.flatten()]
    expected = weight[mask].double().square() / (2 * torch.linalg.inv(active).diagonal())
    assert torch.allclose(found[mask], expected, rtol=1e-9)


@pytest.mark.parametrize("block", [7, 24])
def test_survivors_take_the_values_of_least_loss_that_leave_the_removed_at_zero(block):
    """Two prunes in a row through the controller. The oracle minimises 1/2 d^T H d over d with the removed weights at
    zero by its normal equations: w_S + H_SS^-1 H_SR w_R."""
    weight = nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)))
    tree = {
        "method": {"name": "woodfisher", "block": block, "damping": DAMPING, "window": STEPS},
        "distribution": "uniform",
        "sparsity": 0.5,
        "schedule": {"name": "list", "at": [10, 20], "sparsities": [0.25, 0.5]},
    }
    masks = MaskController(adapter(Masks).validate_python(tree), {"w": weight}, maskable=["w"], seed=0, steps=40)
    for update, kept in ((10, 18), (20, 12)):
        old, before = masks.masks.masks["w"].flatten(), weight.detach().clone().flatten().double()
        watched = [step for step in range(update - 9, update + 1) if masks.watches(step)]
        assert watched == list(range(update - STEPS + 1, update + 1))
        signal = gradients(2 * STEPS)[update // 10 :][:STEPS]
        for step, gradient in zip(watched, signal, strict=True):
            masks.observe(step, {"w": gradient})
        masks.step(update, None)
        new = masks.masks.masks["w"].flatten()
        whole = hessian(signal, block)
        diagonal = torch.linalg.inv(whole[old][:, old]).diagonal()
        scores = torch.full((24,), -1.0, dtype=torch.float64)
        scores[old] = before[old].square() / (2 * diagonal)
        assert int(new.sum()) == kept and set(scores.topk(kept).indices.tolist()) == set(
            new.nonzero().flatten().tolist()
        )
        gone = old & ~new
        makes_up = torch.linalg.solve(whole[new][:, new], whole[new][:, gone] @ before[gone])
        found = weight.detach().flatten()
        assert torch.allclose(found[new].double(), before[new] + makes_up, atol=1e-5)
        assert torch.all(found[~new] == 0) and makes_up.abs().max() > 1e-2


def test_a_window_without_a_finite_gradient_puts_the_update_off():
    weight = nn.Parameter(torch.ones(SHAPE))
    tree = {"method": {"name": "woodfisher", "window": 2}, "every": 10, "sparsity": 0.5}
    masks = MaskController(adapter(Masks).validate_python(tree), {"w": weight}, maskable=["w"], seed=0, steps=40)
    for step in (9, 10):
        masks.observe(step, {"w": torch.full(SHAPE, float("nan"))})
    assert masks.step(10, None) is None and torch.all(weight == 1)
    masks.observe(11, {"w": torch.ones(SHAPE)})
    assert masks.step(11, None) is not None and torch.isfinite(weight).all()


def test_gradients_of_another_shape_are_not_loaded():
    weight = nn.Parameter(torch.ones(SHAPE))
    tree = {"method": {"name": "woodfisher", "window": 2}, "every": 10, "sparsity": 0.5}
    masks = MaskController(adapter(Masks).validate_python(tree), {"w": weight}, maskable=["w"], seed=0, steps=40)
    masks.observe(9, {"w": torch.ones(SHAPE)})
    state = masks.rank_state()
    masks.load_rank_state(state)
    with pytest.raises(ValueError, match="scores of w"):
        masks.load_rank_state({key: tensor.view(-1) for key, tensor in state.items()})
