"""What ranks agree on from where they stand: everybody comes to one point, and the same input gives the same answer."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import job

from sparsetrain.collective.world import World
from sparsetrain.engine.pieces import capture, restore
from sparsetrain.engine.reunion import CannotReunite, Standing, _packed, _unpacked, agree
from sparsetrain.engine.state import build

NEW = Standing()


def at(boundary, **changes):
    return Standing(**{"boundary": boundary, "step": boundary, "size": 3, "recorded": boundary, "norm": 1.0, **changes})


def answers(standings):
    return [agree(standings, rank) for rank in range(len(standings))]


def test_no_state_is_none():
    assert answers([NEW, NEW]) == [None, None]


def test_equal_ranks_do_nothing_and_the_new_one_gets_the_first_ones_state():
    found = answers([NEW, at(5), at(5)])
    assert all(each.source == 1 and each.new == (0,) and not each.finish and not each.undo for each in found)


def test_who_waits_for_words_follows_who_went_ahead_with_its_norm():
    found = answers([at(4, arrived=5, norm=9.0), at(5, norm=2.5)])
    assert [each.finish for each in found] == [True, False]
    assert found[0].norm == 2.5 and found[0].recorded == 4


def test_where_everybody_has_everything_the_exchange_counts():
    found = answers([at(4, arrived=5, norm=2.0), at(4, arrived=5, norm=3.0), NEW])
    assert [each.finish for each in found] == [True, True, False]
    assert {each.norm for each in found} == {2.0}


def test_where_somebody_has_not_everything_the_step_is_done_again():
    assert [each.finish for each in answers([at(4, arrived=5), at(4)])] == [False, False]


def test_masks_that_some_have_changed_go_back():
    found = answers([at(4, masks_due=True, undo=True), at(4, undo=True)])
    assert [(each.undo, each.masks_due) for each in found] == [(True, True)] * 2
    found = answers([at(3, arrived=4), at(4, undo=True)])
    assert [(each.finish, each.undo, each.masks_due) for each in found] == [(True, False, True), (False, True, True)]


def test_a_rank_that_missed_an_exchange_helps_nobody():
    with pytest.raises(CannotReunite, match="rank 0 is at step 3 without the exchange of step 5"):
        agree([at(3), at(5)], 1)


def test_rows_are_recorded_again_only_where_all_stand_at_one_step():
    assert agree([at(4, recorded=3), at(4, recorded=4)], 0).recorded == 3
    between = [at(4, step=6, recorded=6), at(4, step=7, recorded=7)]
    assert agree(between, 0).recorded == 7


@given(
    st.lists(st.tuples(st.sampled_from([4, 5]), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=5)
)
def test_everybody_comes_to_one_step(parts):
    standings = []
    for step, arrived, due, undo in parts:
        standings.append(at(step, arrived=step + 1 if arrived else -1, masks_due=due, undo=undo or due))
    try:
        found = answers(standings)
    except CannotReunite:
        assert any(s.boundary == 4 and s.arrived < 0 for s in standings) and any(s.boundary == 5 for s in standings)
        return
    steps = {s.arrived if each.finish else s.boundary for s, each in zip(standings, found, strict=True)}
    assert len(steps) == 1
    assert len({(each.masks_due, each.source, each.norm, each.recorded) for each in found}) == 1
    for standing, each in zip(standings, found, strict=True):
        assert not (each.undo and not standing.undo) and not (each.undo and each.finish)


def test_a_state_survives_the_way_to_another_rank():
    one, other = (build(job("optimizer={name: adamw}"), World()) for _ in range(2))
    with torch.no_grad():
        for number, parameter in enumerate(one.parameters.values()):
            parameter.add_(0.01 * number)
    one.masks.mask_weights()
    pieces = _unpacked(bytes(_packed(capture(one), one).numpy()), 0)
    restore(other, pieces)
    assert other.weights_digest() == one.weights_digest()
    assert other.masks.masks.digest() == one.masks.masks.digest()


@given(st.data())
def test_a_damaged_state_from_another_rank_is_refused(data):
    whole = bytearray(message())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(4000, len(whole) - 1)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for damaged in (bytes(whole), bytes(whole[:cut])):
        try:
            pieces = _unpacked(damaged, 0)
        except CannotReunite:
            continue
        assert dataclasses.is_dataclass(pieces)


MESSAGE: list[bytes] = []


def message():
    if not MESSAGE:
        state = build(job("masks=null", "model.width=8"), World())
        MESSAGE.append(bytes(_packed(capture(state), state).numpy()))
    return MESSAGE[0]
