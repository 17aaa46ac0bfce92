import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.track.chart import Axis, Curve, chart, decades, escape, linear, scale, short
from sparsetrain.track.console import clean

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20), st.booleans(), st.booleans(), st.booleans())
def test_whatever_the_numbers_are_the_drawing_stays_inside_its_frame(points, log_x, log_y, zero):
    curves = [Curve(name="a", slot=0, points=points), Curve(name="b", slot=11, points=points[:1], look="dots")]
    text = chart("key", "Title", curves, Axis(label="x", log=log_x), Axis(label="y", log=log_y, zero=zero))
    assert "nan" not in text and "inf" not in text
    for path in re.findall(r'<path d="M([^"]+)"', text):
        for pair in path.split("L"):
            x, y = map(float, pair.split())
            assert -1 <= x <= 401 and -1 <= y <= 237


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(3, 8))
def test_marks_of_an_axis_are_round_and_few(low, span, most):
    found = linear(low, low + span, most)
    assert len(found) <= most + 2
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3, abs_tol=1e-6 * abs(low)) for step in steps)


def test_marks_of_a_logarithmic_axis_are_powers_of_ten():
    assert decades(1.0, 1e6, 5) == [1.0, 100.0, 1e4, 1e6]
    assert decades(1.5, 40.0, 6) == [2.0, 5.0, 10.0, 20.0]
    assert scale([1.0, 1.0], 0, 1, Axis(label="", log=True)).high > 1.0


def test_numbers_are_short():
    assert [short(x) for x in (0.0, 1.5e6, 12_000.0, 0.25, 2e-5, -3e12)] == [
        "0",
        "1.5M",
        "12k",
        "0.25",
        "2.0e-5",
        "-3T",
    ]


@given(st.text())
def test_no_text_is_markup_or_control(text):
    assert not set(escape(text)) & set("<>\"'\x00\x1b\n\r\x9b\u202e")
    assert clean(clean(text)) == clean(text) and len(clean(text)) == len(text)


@pytest.mark.parametrize("text", ["\x1b]0;evil\x07", "a\u202eb", "\x9b31m", "a\rb", "\ud800"])
def test_what_a_terminal_would_obey_is_gone(text):
    assert clean(text).isprintable()


def test_a_chart_without_points_says_so():
    assert "not recorded" in chart("loss", "Loss", [Curve(name="a", slot=0, points=[])], Axis(label=""), Axis(label=""))
