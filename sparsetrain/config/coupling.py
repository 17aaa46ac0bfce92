"""What a model says of itself: which rows, biases and columns are one neuron, filter or attention head."""

from __future__ import annotations

import dataclasses

from sparsetrain.config.numbers import Count, Positive


@dataclasses.dataclass(frozen=True)
class Slice:
    """How an axis of a parameter falls into units: into `parts` equal parts, each into as many equal runs as there are
    units; unit u is run u of every part. The rows of a fused q, k and v fall into 3 parts, most else into 1."""

    parameter: str
    axis: Count = 0
    parts: Positive = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coupling:
    """`units` equal units that can each be removed whole, all slices at once, and the rest of the model still fits.

    `makes` are the slices that compute a unit's output: rows of weights, biases, the gains of norms. `reads` are those
    that take it in, such as the next layer's columns. `kind` is `neuron` (filters too) or `head`; a structure of one's
    own may look for others.
    """

    name: str
    kind: str
    units: Positive
    makes: tuple[Slice, ...]
    reads: tuple[Slice, ...] = ()
