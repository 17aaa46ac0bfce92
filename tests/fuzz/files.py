"""A folder of files as one case: for each its name and content behind their lengths."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from typing import Any

from tests.fuzz.mutations import EDGES, changed, changed_value

HEAD = struct.Struct("<HI")
NAME = 1000  # bytes of a name at most
KINDS = ("F32", "F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "X", "")


def joined(files: Mapping[str, bytes]) -> bytes:
    """Return the files as a case."""
    parts = []
    for name, data in files.items():
        raw = name.encode()[:NAME]
        parts += [HEAD.pack(len(raw), len(data)), raw, data]
    return b"".join(parts)


def parted(case: bytes) -> dict[str, bytes]:
    """Return the files of a case; of one that was cut off, what is there."""
    files, at = {}, 0
    while at + HEAD.size <= len(case):
        name, length = HEAD.unpack_from(case, at)
        at += HEAD.size
        files[case[at : at + name].decode(errors="replace")] = case[at + name : at + name + length]
        at += name + length
    return files


def changed_json(data: bytes, draw: random.Random) -> bytes:
    """Return a JSON text with one of its values changed; one that is none with a change of its bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return changed(data, (), draw)
    way = draw.random()
    if way < 0.03:
        return draw.choice((b"[", b'{"a":')) * draw.choice((10, 1000, 100_000))
    text = json.dumps(changed_value(value, draw)).encode()
    if way < 0.2:
        strange = (b"1e999", b"9" * 5000, b"-1", b"NaN", b'"\\ud800"', b"1.0", b"[[1]]", b"\xff")
        return text.replace(str(draw.choice((0, 1, 2, 4, 8))).encode(), draw.choice(strange), 1)
    return text if way < 0.9 else b"{" + text[1:-1] + b"," + text[1:-1] + b"}"


def changed_tensors(data: bytes, draw: random.Random) -> bytes:
    """Return a safetensors file with another name, type, shape or place in its header, with values that are not finite
    or out of range, or with other bytes."""
    way = draw.random()
    if way < 0.15 or len(data) < 8:
        return changed(data, (), draw, 0, 16 if way < 0.05 else None)
    size = int.from_bytes(data[:8], "little")
    if way < 0.6:
        return _values(data, 8 + size, draw)
    try:
        header: Any = json.loads(data[8 : 8 + size])
        name = draw.choice([key for key in header if key != "__metadata__"])
        about = header[name]
        _change_entry(header, name, about, draw)
        text = json.dumps(header).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return changed(data, (), draw)
    if way > 0.97:
        text = text.replace(name.encode(), b"\xff\xfe", 1)
    length = len(text) if draw.random() < 0.97 else draw.choice(EDGES)
    return length.to_bytes(8, "little") + text + data[8 + size :]


def _values(data: bytes, start: int, draw: random.Random) -> bytes:
    """Return the file with some of the values behind the header others, in the same number of bytes."""
    found = changed(data[start:], (), draw)
    return data[:start] + found[: len(data) - start] + data[start + len(found) :]


def _change_entry(header: dict[str, Any], name: str, about: dict[str, Any], draw: random.Random) -> None:
    way = draw.random()
    if way < 0.15:
        about["dtype"] = draw.choice(KINDS)
    elif way < 0.3:
        shape = about["shape"]
        strange = ([], [0], shape[::-1], [1, *shape], shape * 2, [2**40, 2**40], [2**62], [-1], [1.5])
        about["shape"] = draw.choice(strange)
    elif way < 0.4:
        about["data_offsets"] = [at + draw.choice((-4, 0, 4, 2**40)) for at in about["data_offsets"]]
    elif way < 0.5:  # another type of the same width, or a shape of the same bytes
        about["dtype"] = {"F32": "I32", "I64": "F64", "U8": "BOOL", "BOOL": "U8"}.get(about["dtype"], "F32")
    elif way < 0.6:
        count = 1
        for each in about["shape"]:
            count *= each
        about["shape"] = draw.choice(([count], [1, count], [count, 1]))
    elif way < 0.7:
        del header[name]
    elif way < 0.8:
        other = draw.choice(list(header))
        header[name], header[other] = header[other], about
    elif way < 0.95:
        new = draw.choice(
            (name + "x", "", "/" + name, "../" + name, name * 100, "\u0660", name.partition("/")[2], "a/b/c")
        )
        header[new] = header.pop(name)
    else:
        header["__metadata__"] = draw.choice(({"a": "b"}, {"a": 1}, [], None))
