"""Randomness that every rank draws alike: a generator from (seed, name, epoch), with no history."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, name: str, epoch: int) -> torch.Generator:
    """Return a CPU generator keyed by blake2b; Python's own hash differs from process to process."""
    key = hashlib.blake2b(f"{seed}/{name}/{epoch}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
