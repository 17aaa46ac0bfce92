"""Rates of links as people write them."""

from __future__ import annotations

import re

UNITS = {"kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}


def parse_rate(text: str) -> int | None:
    """Return bits per second of "100mbit", "10gbit" and the like, None of "none" (no limit). Raises ValueError."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})(kbit|mbit|gbit)", text)
    if found:
        return int(found[1]) * UNITS[found[2]]
    if text == "none":
        return None
    raise ValueError(f"rate {text!r}: want a whole number with kbit, mbit or gbit, such as 100mbit or 1gbit, or none")
