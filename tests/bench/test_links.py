"""How rates and delays are written, and what is said when hosts cannot be made; nothing here needs root."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.bench.hosts import Hosts
from sparsetrain.bench.links import parse_delay
from sparsetrain.config.rate import UNITS, parse_rate


@given(st.integers(1, 999_999), st.sampled_from(sorted(UNITS)))
def test_rates_are_decimal(number, unit):
    assert parse_rate(f"{number}{unit}") == number * {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}[unit]


def test_none_is_no_limit():
    assert parse_rate("none") is None


@pytest.mark.parametrize("text", ["0mbit", "-1mbit", "1", "1 gbit", "1Gbit", "1.5gbit", "1gbps", "1gbit\n", "٣mbit"])
def test_other_rates_are_refused_with_the_form(text):
    with pytest.raises(ValueError, match=r"100mbit or 1gbit, or none"):
        parse_rate(text)


def test_delays():
    assert parse_delay("5ms") == 5000
    assert parse_delay("70us") == 70
    for text in ("5", "5s", "0ms", "5ms "):
        with pytest.raises(ValueError, match="such as 5ms"):
            parse_delay(text)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": 2000}, {"count": 2, "rate": "fast"}, {"count": 2, "delay": "1"}]
)
def test_wrong_numbers_are_refused_before_anything_is_made(wrong):
    with pytest.raises(ValueError, match="want"):
        Hosts(**wrong)


def test_missing_names_root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert Hosts.missing() == "network namespaces need root"


@pytest.mark.parametrize("tool", ["ip", "tc"])
def test_missing_names_the_tool(monkeypatch, tool):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name: None if name == tool else f"/sbin/{name}")
    assert Hosts.missing() == f"the command `{tool}` is missing (package iproute2)"
