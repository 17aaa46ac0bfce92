"""The whole bucket, masked places included: what training without sparsity sends."""

from __future__ import annotations

from sparsetrain.collective.packed import Packed


class Dense(Packed):
    """Mean of whole buckets: 2 n (P-1)/P values, 2 (P-1) latencies. The regime `dense` uses it."""

    support = "all"
