"""Small changes of bytes and of JSON-like values. All draws come from the generator that is passed in."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63)
WORDS: tuple[Any, ...] = (
    *(0, 1, -1, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.0, 1e308, float("inf"), float("nan")),
    *(
        True,
        False,
        None,
        "",
        "0",
        "x" * 300,
        "\x00",
        "../../x",
        "/etc/passwd",
        "\u202e",
        "\u0660",
        [],
        {},
        [[]],
        {"": {}},
    ),
)


def changed(case: bytes, corpus: Sequence[bytes], draw: random.Random, low: int = 0, high: int | None = None) -> bytes:
    """Return `case` with one to four small changes, at first inside `low`..`high`."""
    data = bytearray(case)
    high = len(data) if high is None else min(high, len(data))
    for _ in range(1 + (draw.random() < 0.5) + 2 * (draw.random() < 0.1)):
        _change(data, corpus, draw, min(low, len(data)), min(high, len(data)))
    return bytes(data)


def _change(data: bytearray, corpus: Sequence[bytes], draw: random.Random, low: int, high: int) -> None:
    way = draw.random()
    at = int(draw.random() * (high - low)) + low
    if high <= low or way < 0.02:
        data[at:at] = draw.randbytes(1 + int(draw.random() * 8))
    elif way < 0.3:
        data[at] ^= 1 << int(draw.random() * 8)
    elif way < 0.5:
        data[at] = int(draw.random() * 256)
    elif way < 0.7:
        size = draw.choice((1, 2, 4, 8))
        edge = (draw.choice(EDGES) + draw.choice((-1, 0, 0, 1))) % (1 << 8 * size)
        part = edge.to_bytes(size, "little")[: high - at]
        data[at : at + len(part)] = part
    elif way < 0.78:
        del data[at : at + 1 + int(draw.random() ** 3 * 64)]
    elif way < 0.86:
        end = at + 1 + int(draw.random() ** 2 * 32)
        to = int(draw.random() * (high - low)) + low
        data[to:to] = data[at:end]
    elif way < 0.9:
        data[at : at + 4] = struct.pack("<f", draw.choice((float("nan"), float("inf"), -1e38, 1e-40)))[: high - at]
    elif way < 0.95 and corpus:
        other = draw.choice(corpus)
        start = int(draw.random() * len(other))
        part = other[start : start + 1 + int(draw.random() * 64)]
        data[at : at + len(part)] = part
    else:
        end = at + 1 + int(draw.random() * 16)
        data[at:end] = draw.randbytes(len(data[at:end]))


def changed_value(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """Return a JSON-like value with one of its parts replaced, removed, doubled or put one level deeper."""
    if depth < 8 and isinstance(value, dict) and value and draw.random() < 0.9:
        result, key = dict(value), draw.choice(list(value))
        way = draw.random()
        if way < 0.1:
            del result[key]
        elif way < 0.2:
            result[draw.choice((f"{key}x", "", str(key).upper(), f"../{key}", *value))] = result[key]
        else:
            result[key] = changed_value(value[key], draw, depth + 1)
        return result
    if depth < 8 and isinstance(value, list) and value and draw.random() < 0.8:
        at, way = draw.randrange(len(value)), draw.random()
        own = value[at]
        middle = [] if way < 0.1 else [own, own] if way < 0.3 else [changed_value(own, draw, depth + 1)]
        return [*value[:at], *middle, *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice((value + 1, value - 1, -value, value * 2, str(value), [value]))
    return draw.choice((*WORDS, [value], {"a": value}))
