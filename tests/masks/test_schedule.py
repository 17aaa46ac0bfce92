import pytest

from sparsetrain.masks.schedule import MaskSchedule, cosine_drop, cubic


@pytest.mark.parametrize(
    ("step", "sparsity"), [(10, 0.2439), (25, 0.520312), (50, 0.7875), (75, 0.885938), (90, 0.8991), (100, 0.9)]
)
def test_cubic(step, sparsity):
    assert cubic(0.9, step / 100) == pytest.approx(sparsity, abs=5e-7)


@pytest.mark.parametrize(("step", "sparsity"), [(4000, 0.549219), (5000, 0.83125), (6000, 0.935156)])
def test_cubic_of_the_rigl_lenet_configuration(step, sparsity):
    assert cubic(0.95, (step - 3000) / 4000) == pytest.approx(sparsity, abs=5e-7)


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0, 0.3), (0.2, 0.271353), (1 / 3, 0.225), (0.5, 0.15), (2 / 3, 0.075), (0.8, 0.028647), (1, 0)],
)
def test_cosine(progress, share):
    assert cosine_drop(0.3, progress) == pytest.approx(share, abs=5e-7)


def test_rigl_on_imagenet_has_239_updates_with_a_mean_fraction_of_fifteen_percent():
    schedule = MaskSchedule(32_000, 0.0, 0.75, 100)
    updates = schedule.updates()
    assert len(updates) == 239 and updates[0] == 100 and updates[-1] < 24_000
    assert sum(cosine_drop(0.3, schedule.fraction(s)) for s in updates) / 239 == pytest.approx(0.15, abs=1e-3)


def test_the_list_and_the_question_agree_and_the_cosine_starts_at_begin():
    schedule = MaskSchedule(300, 0.25, 0.8, 7)
    assert schedule.updates() == [step for step in range(301) if schedule.is_update(step)]
    assert all(75 <= step < 240 for step in schedule.updates())
    assert schedule.fraction(75) == 0.0 and schedule.ramp(schedule.updates()[-1]) == 1.0


@pytest.mark.parametrize(("begin", "end"), [(0.5, 0.75), (0.25, 0.5), (0.0, 0.5)])
def test_a_ramp_is_whole_at_the_last_update_also_when_it_is_the_only_one(begin, end):
    schedule = MaskSchedule(400, begin, end, 100)
    assert schedule.ramp(schedule.updates()[-1]) == 1.0
