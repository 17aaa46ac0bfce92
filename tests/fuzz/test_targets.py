"""Each parser on a few hundred cases near valid ones, and on bytes from nowhere. `python -m tests.fuzz` goes on."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import TARGETS, target_of
from tests.fuzz.engine import Fuzzer

COUNTS = {
    "payload": 5000,
    "codes": 5000,
    "handover": 1000,
    "json": 500,
    "job_file": 200,
    "checkpoint": 300,
    "export": 1000,
}


@functools.cache
def target(name):
    return target_of(name)


@pytest.mark.parametrize("name", TARGETS)
def test_every_valid_case_is_accepted(name):
    cases = target(name).seeds()
    assert cases and all(target(name).read(case) is not None for case in cases)


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing_and_is_the_same_every_time(name, tmp_path):
    tally = Fuzzer(target(name), seed=0, out=tmp_path).run(COUNTS[name])
    assert not tally.findings, [path.read_text() for path in tmp_path.glob("*.txt")]
    assert tally.cases == tally.accepted + tally.refused >= COUNTS[name]
    assert tally.accepted and tally.lines > 40
    if name in ("payload", "handover"):
        again = Fuzzer(target(name), seed=0).run(COUNTS[name])
        assert (again.accepted, again.refused, again.corpus) == (tally.accepted, tally.refused, tally.corpus)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_bytes_from_nowhere_and_cut_or_spliced_cases_are_read_or_refused(name, data):
    seeds = target(name).seeds()
    case = data.draw(st.sampled_from(seeds))
    other = data.draw(st.one_of(st.binary(max_size=200), st.sampled_from(seeds)))
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(case)), st.integers(0, len(case)))))
    case = data.draw(st.sampled_from((other, case[:start], case[:start] + other + case[end:], case[:1] + other)))
    try:
        target(name).read(case)
    except target(name).refusals:
        pass
