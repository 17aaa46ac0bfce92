"""Reads what the W&B client has written: a log in the framing of leveldb, whose records are protocol buffers."""

import importlib
import json
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

HEADER = 7  # bytes at the beginning of the file
BLOCK = 32 << 10
FIRST, LAST = (1, 2), (1, 4)  # kinds of chunks that begin and end a record


def records(path: pathlib.Path) -> Iterator[Any]:
    """Yield the records of a .wandb file."""
    data, at, whole = path.read_bytes(), HEADER, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = (b"" if kind in FIRST else whole) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in LAST:
            record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record()
            record.ParseFromString(whole)
            yield record


def segments(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of a run folder in the order of their start."""
    return sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.parent.name)


def history(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows that were logged."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def config(path: pathlib.Path) -> dict[str, Any]:
    """Return the config of the run."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "run":
            found |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return found
