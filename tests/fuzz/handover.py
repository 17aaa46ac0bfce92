"""Masks as a rank hands them over. A case is the message; refusal: CorruptHandover."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Hashable, Sequence

import numpy as np
import torch

from sparsetrain.masks.handover import HEADER, MAGIC, CorruptHandover, pack, unpack
from sparsetrain.masks.maskset import MaskSet
from tests.fuzz.mutations import changed
from tests.fuzz.target import Target

SHAPES = {"a": (7, 11), "b": (3, 1, 5), "c": (1,)}


class Handovers(Target):
    refusals = (CorruptHandover,)
    traced = 256

    def __init__(self) -> None:
        self.like = {name: torch.zeros(shape) for name, shape in SHAPES.items()}

    def seeds(self) -> list[bytes]:
        return [pack(self._masks(density, wider)) for density in (0.0, 0.3, 1.0) for wider in (False, True)]

    def _masks(self, density: float, wider: bool) -> MaskSet:
        draw = torch.Generator().manual_seed(0)
        masks = {name: torch.rand(shape, generator=draw) < density for name, shape in SHAPES.items()}
        return MaskSet(masks, 5, {name: torch.ones_like(mask) for name, mask in masks.items()} if wider else {})

    def read(self, case: bytes) -> Hashable:
        masks = unpack(case, self.like)
        assert {name: tuple(mask.shape) for name, mask in masks.masks.items()} == SHAPES, "other names or shapes"
        assert all(not bool((mask & ~masks.update(name)).any()) for name, mask in masks.masks.items()), "not inside"
        assert unpack(pack(masks), self.like).digest() == masks.digest(), "not what was read"
        return len(masks.updates), sum(masks.counts().values()).bit_length()

    def change(self, case: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
        found = bytearray(changed(case, corpus, draw))
        if draw.random() < 0.6:
            found = bytearray(bytes(found)[: len(case)] + case[len(found) :])
            if len(found) >= HEADER.size:
                self._reseal(found)
        return bytes(found)

    def _reseal(self, data: bytearray) -> None:
        """Give a message of the right length the digest of its content, as an attacker would."""
        _, epoch, _ = HEADER.unpack_from(data)
        at, packed = HEADER.size, {}
        for name, tensor in self.like.items():
            size = -(-tensor.numel() // 8)
            for key in (name, f"update/{name}"):
                bits = np.frombuffer(bytes(data[at : at + size]), np.uint8)
                if len(bits) == size:
                    packed[key] = torch.from_numpy(bits.copy())
                at += size
        try:
            digest = MaskSet.from_packed(packed, self.like, epoch).reduced().digest()
        except ValueError:
            digest = hashlib.blake2b(digest_size=16).digest()
        HEADER.pack_into(data, 0, MAGIC, epoch, digest)
