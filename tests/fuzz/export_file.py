"""Exports that load.py decodes: compressed, CSR, BSR and 2:4, their metadata, headers and values.

A case is a safetensors file. Refusal: BadExport in one line. What is accepted becomes dense, and a compressed one is
written again: its positions must be the ones that were read.
"""

from __future__ import annotations

import json
import pathlib
import random
from collections.abc import Hashable, Sequence

import torch
from safetensors import safe_open

from sparsetrain.export import load
from sparsetrain.export.format import write_weights
from sparsetrain.kernels import index_code
from tests.fuzz.files import changed_json, changed_tensors
from tests.fuzz.target import Target, scratch

SIZE = 40


class ExportFiles(Target):
    refusals = (load.BadExport,)
    traced = 64

    def __init__(self) -> None:
        self.path = scratch() / "model.safetensors"

    def seeds(self) -> list[bytes]:
        values = torch.arange(1.0, 5.0)
        row = torch.tensor([0, 2, 3, 3, 4], dtype=torch.int32)
        column = torch.tensor([0, 3, 2, 1], dtype=torch.int32)
        bias = torch.ones(4)
        places = index_code.encode_elias_fano(torch.tensor([3, 9, 17, 39], dtype=torch.int32), SIZE)
        bits = index_code.encode_bitmap(torch.tensor([0, 1, 3, 6], dtype=torch.int32), 8)
        entries = {"float32": [["a", [5, 8], 4], ["b", [4]], ["c", [2, 4], 4]]}
        packed = {"values.float32": torch.cat([values, bias, values]), "positions": torch.cat([places, bits])}
        sparse = {"w.values": values, "w.crow": row, "w.col": column, "b": bias}
        blocks = {**sparse, "w.values": torch.ones(4, 2, 2)}
        fours = {"w.values": torch.ones(4, 2), "w.places": torch.tensor([0b11100100, 0b10011000], dtype=torch.uint8)}
        return [
            self._written(packed, {"layout": "compressed", "tensors": entries, "tied": {"d": "a"}}),
            self._written(sparse, {"layout": "csr", "shapes": {"w": [4, 2, 2]}, "tied": {}}),
            self._written(blocks, {"layout": "bsr", "shapes": {"w": [8, 8]}, "tied": {"v": "w"}}),
            self._written(fours, {"layout": "2:4", "shapes": {"w": [4, 4]}, "tied": {}}),
        ]

    def read(self, case: bytes) -> Hashable:
        self.path.write_bytes(case)
        try:
            found = load.state_dict(self.path)
        except load.BadExport as error:
            assert "\n" not in str(error)
            raise
        assert all(tensor.layout == torch.strided for tensor in found.values())
        with safe_open(self.path, "pt") as file:
            told = file.metadata()
            if told["layout"] == "compressed":
                self._compare(json.loads(told["tensors"]), file.get_tensor("positions"))
        return told["layout"], len(found) > 3

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        if draw.random() < 0.6:
            return changed_tensors(case, draw)
        size = int.from_bytes(case[:8], "little")
        try:
            header = json.loads(case[8 : 8 + size])
            told = header["__metadata__"]
            key = draw.choice(sorted(told))
            told[key] = changed_json(told[key].encode(), draw).decode(errors="replace")
            text = json.dumps(header).encode()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return changed_tensors(case, draw)
        return len(text).to_bytes(8, "little") + text + case[8 + size :]

    def _written(self, tensors: dict[str, torch.Tensor], told: dict[str, object]) -> bytes:
        write_weights(self.path.parent, tensors, told)
        return pathlib.Path(self.path).read_bytes()

    def _compare(self, groups: dict[str, list[list]], data: torch.Tensor) -> None:
        raw = data.numpy()
        for _, shape, *kept in (entry for entries in groups.values() for entry in entries):
            size = int(torch.Size(shape).numel())
            for count in kept:
                length = min(load.elias_fano_bytes(count, size), (size + 7) // 8)
                places = torch.from_numpy(load.positions(raw[:length], count, size)).int()
                fano = load.elias_fano_bytes(count, size) < (size + 7) // 8
                encode = index_code.encode_elias_fano if fano else index_code.encode_bitmap
                assert encode(places, size).numpy().tobytes() == raw[:length].tobytes()
                raw = raw[length:]
