import itertools

import pytest
from torch.ao.pruning import CubicSL

from sparsetrain import registry
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.load import load_job
from sparsetrain.masks.methods.regrower import cosine_drop
from sparsetrain.masks.schedule import MaskSchedule, Span


def schedule(name: str, span: Span, **options) -> MaskSchedule:
    cls = registry.load("mask_schedule", name)
    return cls(adapter(cls.Config).validate_python(options), span)


@pytest.mark.parametrize(
    ("step", "sparsity"), [(10, 0.2439), (25, 0.520312), (50, 0.7875), (75, 0.885938), (90, 0.8991), (100, 0.9)]
)
def test_cubic(step, sparsity):
    # The last update, after step 100, is where the ramp ends.
    assert schedule("cubic", Span(102, 0, 101, 1)).sparsity(0.9, step) == pytest.approx(sparsity, abs=5e-7)


def test_cubic_is_torchs_own():
    ramp = schedule("cubic", Span(102, 0, 101, 1), initial=0.2)
    for step in range(1, 101):
        assert ramp.sparsity(0.9, step) == pytest.approx(
            CubicSL.sparsity_compute_fn(0.2, 0.9, step, 0, 1, 100), abs=1e-12
        )


@pytest.mark.parametrize(("step", "sparsity"), [(4000, 0.549219), (5000, 0.83125), (6000, 0.935156), (7000, 0.95)])
def test_cubic_of_the_rigl_lenet_configuration(step, sparsity):
    assert schedule("cubic", Span(11_719, 3000, 7001, 100)).sparsity(0.95, step) == pytest.approx(sparsity, abs=5e-7)


@pytest.mark.parametrize(("rounds", "density"), [(5, 0.3277), (10, 0.1074), (11, 0.0859), (20, 0.0115)])
def test_rounds_that_prune_a_fifth_each(rounds, density):
    found = schedule("rounds", Span(1000, 0, 1, 1), rounds=rounds)
    final = 1 - 0.8**rounds
    for n, update in enumerate(found.updates(), 1):
        assert 1 - found.sparsity(final, update) == pytest.approx(0.8**n)
    assert len(found.updates()) == rounds and 1 - found.sparsity(final, 999) == pytest.approx(density, abs=5e-5)


@pytest.mark.parametrize(
    ("steps", "rounds", "rewind"), [(100, 3, 0), (100, 3, 10), (103, 3, 10), (7, 5, 0), (50, 1, 20)]
)
def test_stretches_after_a_rewind_begin_at_its_step_and_are_equally_long(steps, rounds, rewind):
    found = schedule("rounds", Span(steps, 0, 1, 1), rounds=rounds, rewind=rewind)
    length, updates = found.length, found.updates()
    assert updates[0] == length and {b - a for a, b in itertools.pairwise(updates)} <= {length - rewind}
    assert length - rewind <= steps - updates[-1] <= length - rewind + rounds
    places = [found.position(step) for step in range(steps)]
    assert {whole for _, whole in places} == {length}
    stretches = [list(range(length)), *[list(range(rewind, length)) for _ in range(rounds)]]
    expected = [place for stretch in stretches for place in stretch]
    assert [place for place, _ in places] == (expected + [length - 1] * rounds)[:steps]


def test_other_schedules_have_one_stretch():
    assert schedule("cubic", Span(100, 0, 80, 10)).position(37) == (37, 100)


def test_the_mean_of_a_cubic_ramp_is_three_quarters_of_its_end():
    ramp = schedule("cubic", Span(10_000, 0, 10_000, 1))
    assert sum(ramp.sparsity(0.9, step) for step in ramp.updates()) / len(ramp.updates()) == pytest.approx(
        0.675, abs=1e-3
    )


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 0.3), (0.2, 0.271353), (1 / 3, 0.225), (0.5, 0.15), (2 / 3, 0.075), (0.8, 0.028647), (1, 0)],
)
def test_cosine_of_the_drop_fraction(progress, share):
    assert cosine_drop(0.3, progress) == pytest.approx(share, abs=5e-7)


def test_rigl_on_imagenet_has_239_updates_with_a_mean_fraction_of_fifteen_percent():
    span = Span(32_000, 0.0, 0.75, 100)
    updates = span.updates()
    assert len(updates) == 239 and updates[0] == 100 and updates[-1] < 24_000
    assert sum(cosine_drop(0.3, span.fraction(s)) for s in updates) / 239 == pytest.approx(0.15, abs=1e-3)


def test_the_drop_cosine_starts_at_begin_and_not_at_step_zero():
    span = Span(4000, 1000, 3000, 100)
    assert cosine_drop(0.3, span.fraction(1000)) == pytest.approx(0.3)
    assert cosine_drop(0.3, span.fraction(2000)) == pytest.approx(0.15)


@pytest.mark.parametrize("name", registry.names("mask_schedule"))
@pytest.mark.parametrize(("begin", "end"), [(0.25, 0.8), (75, 240), (0.0, 1.0)])
def test_the_list_and_the_question_agree_and_the_last_update_comes_before_the_end(name, begin, end):
    found = schedule(name, Span(300, begin, end, 7))
    updates = found.updates()
    assert updates == [step for step in range(301) if found.is_update(step)] and updates
    assert updates == sorted(set(updates)) and updates[0] > 0 and updates[-1] < 300
    assert found.sparsity(0.9, updates[-1]) == 0.9
    assert all(0.0 <= found.sparsity(0.9, step) <= 0.9 for step in updates)


@pytest.mark.parametrize("name", ["linear", "cubic", "cosine"])
@pytest.mark.parametrize(("begin", "end"), [(0.5, 0.75), (0.25, 0.5), (0.0, 0.5)])
def test_a_ramp_climbs_and_is_whole_at_the_last_update_also_when_it_is_the_only_one(name, begin, end):
    ramp = schedule(name, Span(400, begin, end, 100), initial=0.3)
    found = [ramp.sparsity(0.9, step) for step in ramp.updates()]
    assert found == sorted(found) and found[-1] == 0.9 and found[0] >= 0.3


def test_cosine_is_half_way_in_the_middle():
    assert schedule("cosine", Span(202, 0, 201, 1)).sparsity(0.8, 100) == pytest.approx(0.4)


def test_shares_and_steps_say_the_same():
    assert Span(400, 0.25, 0.75, 0.05).updates() == Span(400, 100, 300, 20).updates()
    assert Span(400, 0.0, 1.0, 1).updates() == list(range(1, 400))


def test_one_shot_updates_once():
    assert schedule("one_shot", Span(400, 0.5, 1.0, 30)).updates() == [210]


def test_a_list_names_points_and_sparsities():
    found = schedule("list", Span(400, 0, 1.0, 1), at=[0.1, 0.5, 300], sparsities=[0.5, 0.8, 0.9])
    assert [(step, found.sparsity(0.95, step)) for step in found.updates()] == [(40, 0.5), (200, 0.8), (300, 0.9)]
    assert schedule("list", Span(400, 0, 1.0, 1), at=[7]).sparsity(0.95, 7) == 0.95


def test_the_phases_of_acdc_over_a_hundred_epochs():
    """50 sparse epochs, the first is 11, the last 100; momentum begins anew in epochs 16, 26, ..., 86."""
    phases = schedule("phases", Span(100, 0.0, 1.0, 1), warmup=10, sparse=5, dense=5, finish=90)
    sparse, state, resets = [], 0.0, []
    for epoch in range(1, 101):
        if phases.is_update(epoch - 1):
            new = phases.sparsity(0.9, epoch - 1)
            resets += [epoch] if new < state else []
            state = new
        sparse += [epoch] if state else []
    assert len(sparse) == 50 and sparse[0] == 11 and sparse[-1] == 100
    assert resets == list(range(16, 87, 10))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("masks.begin=1.5", "masks.begin: must be a share of the run (at most 1) or a whole number of steps"),
        ("masks.every=0", "masks.every: must be greater than 0"),
        ("masks.schedule=cubik", "masks.schedule: unknown mask_schedule 'cubik'; allowed: constant, cosine"),
        ("masks.schedule={name: list, at: [0.1], sparsities: [0.1, 0.2]}", "masks.schedule: 2 sparsities for 1 points"),
        ("masks.schedule.at=3", "masks.schedule: give a name or a mapping with 'name'"),
    ],
)
def test_mistakes_in_a_schedule_are_named(override, says):
    with pytest.raises(JobError) as caught:
        load_job("quickstart", (override,))
    assert str(caught.value).startswith(says)
