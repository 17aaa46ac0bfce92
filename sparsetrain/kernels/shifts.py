"""Where each kept weight of a convolution takes its image in: a matrix of patches that nobody has to write down."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparsetrain.kernels.pattern import Pattern

Pair = tuple[int, int]
LARGEST = 2**31 - 1  # places of an image


@dataclasses.dataclass(frozen=True)
class Shifts:
    """Where each kept weight takes an image [channels, height, width] in that has a border of zeros: `offsets` int32
    [count] elements on, those of a result's plane from `starts` int32 [rows + 1] on. `order` says which value each of
    them takes, None: the next one. `sizes` are channels, height, width, the border's rows and columns, and the
    results' height and width."""

    starts: Tensor
    offsets: Tensor
    order: Tensor | None
    sizes: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Return how many planes of results there are."""
        return len(self.starts) - 1

    @property
    def line(self) -> int:
        """Return the elements of an image's line with its border."""
        return self.sizes[2] + 2 * self.sizes[4]

    @property
    def plane(self) -> int:
        """Return the elements of a channel with its border."""
        return (self.sizes[1] + 2 * self.sizes[3]) * self.line


def shifts(
    pattern: Pattern, shape: tuple[int, ...], image: tuple[int, ...], padding: Pair, dilation: Pair
) -> tuple[Shifts, Shifts] | None:
    """Return those of a convolution of an image [channels, height, width] with a weight of `shape` [outputs,
    channels, height, width], and those of its input's gradient, which is a convolution of the output's; None where the
    border is wider than the weight reaches, or an image too large."""
    outputs, channels, *window = shape
    reach = [step * (length - 1) for step, length in zip(dilation, window, strict=True)]
    size = list(image[1:])
    results = [s + 2 * p - r for s, p, r in zip(size, padding, reach, strict=True)]
    border = [r - p for r, p in zip(reach, padding, strict=True)]
    if min(border) < 0 or min(results) < 1:
        return None
    pixels = window[0] * window[1]
    row, place = pattern.row_of, pattern.columns.long()
    channel, pixel = place // pixels, place % pixels
    forward = (channels, *size, *padding, *results)
    back = (outputs, *results, *border, *size)
    there = _places(channel, pixel // window[1], pixel % window[1], dilation, forward)
    order = torch.argsort((channel * outputs + row) * pixels + pixel)
    flipped = (window[0] - 1 - pixel // window[1], window[1] - 1 - pixel % window[1])
    again = _places(row, *flipped, dilation, back)[order]
    starts = torch.cat([channel.new_zeros(1), torch.bincount(channel, minlength=channels).cumsum(0)])
    found = (Shifts(pattern.starts, there.int(), None, forward), Shifts(starts.int(), again.int(), order.int(), back))
    return None if any(found.sizes[0] * found.plane > LARGEST for found in found) else found


def _places(plane: Tensor, row: Tensor, column: Tensor, dilation: Pair, sizes: tuple[int, ...]) -> Tensor:
    line = sizes[2] + 2 * sizes[4]
    return plane * (sizes[1] + 2 * sizes[3]) * line + row * dilation[0] * line + column * dilation[1]
