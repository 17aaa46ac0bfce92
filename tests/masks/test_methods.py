import pytest
import torch
from moments import flat, method, moment, present

from sparsetrain import registry
from sparsetrain.masks.explored import Explored
from sparsetrain.masks.layout import Layout
from sparsetrain.masks.maskset import MaskSet
from sparsetrain.masks.methods.regrower import drop_and_grow

NAN = float("nan")


def bits(text: str) -> torch.Tensor:
    return torch.tensor([int(bit) for bit in text], dtype=torch.bool)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.0, "01010110"), (0.25, "11010100"), (0.5, "11001100"), (0.75, "10101100"), (1.0, "10101100")],
)
def test_the_micro_example_of_rigl(fraction, expected):
    weights = torch.tensor([-9.0, 1, 4, -1, 5, 8, -2, 3])
    found = drop_and_grow(flat((8,)), bits("01010110"), weights, weights.abs(), fraction, 4)
    assert torch.equal(found, bits(expected))


def test_in_groups_dropping_goes_by_rank_over_all_and_growing_fills_each_group():
    """Two groups of four, two active in each: the two smallest of all are dropped, both in the first group."""
    keep = torch.tensor([0.1, 0.2, 9, 9, 5, 6, 9, 9])
    grow = torch.tensor([0.0, 0, 1, 2, 7, 7, 7, 7])
    found = drop_and_grow(Layout((8,), 2, 4, 1), bits("11001100"), keep, grow, 0.5, 4)
    assert torch.equal(found, bits("00111100"))


@pytest.mark.parametrize("name", registry.names("mask_method"))
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_every_method_keeps_the_count_exact_and_is_deterministic(name, progress):
    rule = method(name)
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).round()
    signal = torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).round()
    everything = torch.ones_like(weight, dtype=torch.bool)
    rule.begin({"w": weight})
    mask = rule.initial(moment(weight, everything, 90))

    if name == "woodfisher":
        signal = torch.stack([signal, signal.roll(1)])

    def update() -> torch.Tensor:
        masked = torch.where(mask, weight, 0.0)
        given = moment(masked, mask, 90, signal=signal, progress=progress, update_count=150, last=True)
        new = rule.update(given)
        assert torch.all(rule.update_set(given, new)[new])
        return new

    assert update().dtype == torch.bool and int(update().sum()) == 90
    assert torch.equal(update(), update())


def test_rigl_grows_where_the_gradient_is_largest_and_says_what_it_needs():
    rule = method("rigl", drop_fraction=0.5)
    weight, mask = torch.tensor([5.0, 0.1, 0.0, 0.0]), bits("1100")
    assert torch.equal(rule.update(moment(weight, mask, 2, signal=torch.tensor([0.0, 0.0, -1.0, 9.0]))), bits("1001"))
    with pytest.raises(ValueError, match="needs the signal"):
        rule.update(moment(weight, mask, 2))


def test_a_weight_just_dropped_may_regrow():
    rule = method("rigl", drop_fraction=0.5)
    weight, signal = torch.tensor([5.0, 0.1, 0.0, 0.0]), torch.tensor([0.0, 3.0, 1.0, 1.0])
    assert torch.equal(rule.update(moment(weight, bits("1100"), 2, signal=signal)), bits("1100"))


def test_an_active_zero_is_not_taken_for_a_pruned_weight():
    weight = torch.tensor([0.0, 3.0, 0.0, 0.0])
    assert torch.equal(method("gmp").update(moment(weight, bits("1110"), 2)), bits("1100"))


def test_set_grows_an_exact_number_uniformly():
    rule = method("set", drop_fraction=0.5)
    grown = torch.zeros(40)
    for seed in range(400):
        weight, mask = torch.arange(40.0), torch.arange(40) < 20
        new = rule.update(moment(weight, mask, 20, generator=torch.Generator().manual_seed(seed)))
        assert int(new.sum()) == 20 and torch.all(new[10:20])
        grown += new
    # 30 places share 10 new weights: a third each, five standard deviations are 0.12.
    rates = torch.cat([grown[:10], grown[20:]]) / 400
    assert torch.all((rates - 1 / 3).abs() < 0.12)


def test_taylor_squares_weight_times_gradient_and_obd_weighs_squares_by_curvature():
    weight = torch.tensor([3.0, -1.0, 2.0, 1.0])
    everything = bits("1111")
    taylor = method("taylor").saliency(moment(weight, everything, 2, signal=torch.tensor([1.0, 4.0, -2.0, 0.5])))
    assert taylor.tolist() == [9.0, 16.0, 16.0, 0.25]
    obd = method("obd").saliency(moment(weight, everything, 2, signal=torch.tensor([1.0, 4.0, 0.5, 2.0])))
    assert obd.tolist() == [4.5, 2.0, 1.0, 1.0]


def test_movement_keeps_what_moves_away_from_zero_whatever_its_size():
    rule = method("movement")
    weight, gradient = torch.tensor([5.0, 0.1, -0.1, -5.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    score = rule.contribution(weight, gradient)
    assert score.tolist() == pytest.approx([-5.0, 0.1, 0.1, -5.0])
    given = moment(weight, bits("1111"), 2, signal=score)
    assert torch.equal(rule.update(given), bits("0110"))
    assert torch.all(rule.update_set(given, bits("0110")))


def test_sr_ste_pulls_the_weights_outside_its_mask_to_zero():
    pull = method("sr_ste", decay=0.5).pull(present(torch.tensor([2.0, -4.0]), bits("10"), bits("11")))
    assert pull.tolist() == [0.0, -2.0]


def test_dnw_takes_the_largest_of_all_anew_and_lets_all_weights_learn():
    rule = method("dnw")
    weight = torch.tensor([1.0, -4.0, 3.0, 2.0])
    given = moment(weight, bits("1001"), 2)
    mask = rule.update(given)
    assert torch.equal(mask, bits("0110")) and torch.all(rule.update_set(given, mask))
    assert torch.equal(rule.initial(given), bits("0110"))
    assert rule.pull(present(weight, mask, bits("1111"))) is None


def test_granet_prunes_first_and_then_trades_the_smallest_for_the_largest_gradients():
    rule = method("granet", drop_fraction=0.5)
    weight = torch.tensor([6.0, -5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0])
    signal = torch.tensor([0.0, 0.0, 0.0, -1.0, 0.5, 7.0, -8.0, 2.0])
    # Six are active, four shall be; of those four the two smallest go, for the two largest |g| of all the others.
    assert torch.equal(rule.update(moment(weight, bits("11111100"), 4, signal=signal)), bits("11000110"))


def test_deepr_sends_what_has_crossed_zero_to_sleep_and_wakes_others_from_zero():
    rule = method("deepr")
    rule.begin({"w": torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])})
    weight = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.0, 0.0])
    new = rule.update(moment(weight, bits("111100"), 4))
    assert torch.equal(new, bits("100111"))  # the second and third have crossed; two others were asleep
    crowded = rule.update(moment(weight, bits("111100"), 5))
    assert crowded[[0, 3, 4, 5]].all() and int(crowded.sum()) == 5  # nothing else is left: one comes back
    values = rule.settle(MaskSet({"w": bits("111100")}), MaskSet({"w": crowded}), {"w": weight}, {})
    back = int(torch.nonzero(crowded & bits("011000")))
    assert values["w"][back] == 0.0 and values["w"][0] == 0.5
    assert rule.settle(MaskSet({"w": bits("111100")}), MaskSet({"w": new}), {"w": weight}, {}) == {}


def test_deepr_wakes_uniformly():
    rule = method("deepr")
    rule.begin({"w": torch.ones(40)})
    weight = torch.where(torch.arange(40) < 10, -1.0, torch.where(torch.arange(40) < 20, 1.0, 0.0))
    woken = torch.zeros(40)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        woken += rule.update(moment(weight, torch.arange(40) < 20, 20, generator=generator))
    # 20 sleepers share 10 places: a half each, five standard deviations are 0.125.
    assert (
        torch.all((woken[20:] / 400 - 0.5).abs() < 0.125) and woken[:10].sum() == 0 and torch.all(woken[10:20] == 400)
    )


def test_deepr_pulls_to_zero_and_shakes_alike_on_all_ranks_and_anew_in_every_step():
    weight = torch.ones(100, 100)
    weight[::2] = -1.0
    mask = torch.ones(100, 100, dtype=torch.bool)
    mask[:10] = False

    def pull(step: int, **options: float) -> torch.Tensor:
        rule = method("deepr", **options)
        rule.begin({"w": weight})
        return rule.pull(present(weight, mask, mask, step=step))

    still = pull(1, penalty=0.25, noise=0.0)
    assert torch.equal(still, torch.where(mask, 0.25 * weight, 0.0))
    shaken = pull(1, penalty=0.0, noise=2.0)
    assert torch.equal(shaken, pull(1, penalty=0.0, noise=2.0)) and torch.all(shaken[:10] == 0)
    assert shaken[10:].std() == pytest.approx(2.0, rel=0.05) and abs(shaken[10:].mean()) < 0.1
    other = pull(2, penalty=0.0, noise=2.0)
    assert abs(torch.corrcoef(torch.stack([shaken[10:].flatten(), other[10:].flatten()]))[0, 1]) < 0.05


def test_the_signs_of_deepr_go_round():
    rule, again = method("deepr"), method("deepr")
    rule.begin({"w": torch.tensor([1.0, -1.0, 0.0])})
    again.begin({"w": torch.tensor([-1.0, -1.0, -1.0])})
    again.load_state(rule.state())
    assert again.positive.masks["w"].tolist() == [True, False, True]


def test_topkast_trains_a_larger_set_and_penalises_it_more_outside_the_forward_set():
    rule = method("topkast", extra=0.5, penalty=0.1)
    weight = torch.tensor([4.0, -3.0, 2.0, 1.0])
    given = moment(weight, bits("1000"), 1, update_count=3)
    mask = rule.update(given)
    update = rule.update_set(given, mask)
    assert torch.equal(mask, bits("1000")) and torch.equal(update, bits("1110"))
    assert rule.update_sparsity(0.75) == 0.25
    # The density of A is 1/4: what is outside it pays four times as much.
    assert rule.pull(present(weight, mask, update)).tolist() == pytest.approx([0.1, -0.4, 0.4, 0.0])


def test_mest_scores_active_weights_by_size_and_gradient():
    rule = method("mest", drop_fraction=0.5, weight=1.0)
    weight, signal = torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([5.0, -0.5, NAN, NAN])
    assert bool(rule.update(moment(weight, bits("1100"), 2, signal=signal.nan_to_num(0.0)))[0])


def test_soft_mest_prunes_back_to_the_budget_then_grows_above_it_at_random():
    rule = method("mest", drop_fraction=0.5, weight=1.0, soft=True)
    assert rule.above(0.8, 0.0) == pytest.approx(0.7) and rule.above(0.8, 1.0) == pytest.approx(0.8)
    assert method("mest").above(0.8, 0.0) == 0.8
    weight, signal = torch.zeros(40), torch.zeros(40)
    weight[:12] = torch.arange(12.0)
    signal[0] = 20.0
    draws = [torch.Generator().manual_seed(n) for n in range(2)]
    mask = weight + signal > 0
    found = [rule.update(moment(weight, mask, 15, budget=10, signal=signal, generator=draw)) for draw in draws]
    best = torch.tensor([0, *range(3, 12)])
    assert all(int(mask.sum()) == 15 and torch.all(mask[best]) for mask in found)
    assert not torch.equal(*found)


def test_acdc_opens_every_place_and_forgets_momentum_when_a_dense_phase_begins():
    rule = method("acdc")
    weight = torch.tensor([4.0, 0.0, 0.0, 1.0])
    assert torch.all(rule.update(moment(weight, bits("1001"), 4)))
    assert rule.forgets(0.9, 0.0) and not rule.forgets(0.0, 0.9)


def test_srigl_ablates_neurons_that_few_salient_weights_want_and_others_share_their_budget():
    rule = method("srigl", drop_fraction=0.5, gamma=0.6)
    weight = torch.tensor([[9.0, 8, 0, 0], [7.0, 6, 0, 0], [0.1, 0.2, 0, 0], [0.3, 0.4, 0, 0]])
    signal = torch.tensor([[0.0, 0, 5, 4], [0.0, 0, 6, 3], [0.0, 0, 1, 1], [0.0, 0, 1, 1]])
    given = moment(weight, weight != 0, 8, layout=Layout((4, 4), 4, 4, 1), signal=signal)
    mask = rule.update(given)
    assert mask.sum(1).tolist() == [4, 4, 0, 0]


def test_srigl_keeps_every_neuron_where_gamma_is_zero():
    rule = method("srigl", gamma=0.0)
    draw = torch.Generator().manual_seed(0)
    weight, signal = torch.randn(6, 8, generator=draw), torch.randn(6, 8, generator=draw)
    layout = Layout((6, 8), 6, 8, 1)
    mask = layout.top(weight.abs(), 18)
    given = moment(weight, mask, 18, layout=layout, signal=signal)
    assert rule.update(given).sum(1).tolist() == [3] * 6


@pytest.mark.parametrize(("updates", "explored"), [(1, 0.1290), (5, 0.2361), (10, 0.3516), (30, 0.6635)])
def test_random_growth_explores_as_itop_says(updates, explored):
    """R_s = 1 - (1 - d)(1 - d f / (1 - d + d f))^q at d = 0.1, f = 0.3."""
    size, draw = 40_000, torch.Generator().manual_seed(0)
    layout, count = flat((size,)), size // 10
    mask = layout.random(count, draw)
    found = Explored(MaskSet({"w": mask}))
    for _ in range(updates):
        lots = [torch.rand(size, generator=draw) for _ in range(2)]
        mask = drop_and_grow(layout, mask, lots[0], lots[1], 0.3, count)
        found.add(MaskSet({"w": mask}))
    assert found.fraction() == pytest.approx(explored, abs=5e-3)
    again = Explored(MaskSet({"w": mask}))
    again.load(found.packed())
    assert again.fraction() == found.fraction()
