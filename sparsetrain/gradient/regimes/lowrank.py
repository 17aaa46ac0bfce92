"""PowerSGD: a matrix travels as two thin factors, the error stays behind (Vogels, Karimireddy, Jaggi, NeurIPS 2019)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsetrain.collective.collective import Volume
from sparsetrain.collective.entries import Outcome
from sparsetrain.collective.world import World
from sparsetrain.config.job import Exchange
from sparsetrain.gradient.channel import Channel
from sparsetrain.gradient.feedback.base import Feedback
from sparsetrain.gradient.regimes.base import Regime, Turn

FACTOR = "factor/"  # before the names of the right factors in a state
WORTH = 0.5  # both factors together must be shorter than this share of the matrix's active coordinates
FLAT = 1e-6  # of its length, below which a column of a factor is made of others


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A tensor seen as rows x columns, where it begins in its bucket, and the rank of its factors."""

    name: str
    start: int
    rows: int
    columns: int
    rank: int

    def view(self, flat: Tensor) -> Tensor:
        """Return the matrix as a view of its bucket."""
        return flat[self.start : self.start + self.rows * self.columns].view(self.rows, self.columns)


@dataclasses.dataclass(frozen=True)
class Factors:
    """What is sent first: all left factors end to end, then what travels whole. `acc` is the bucket in full shape;
    `rights` numbers follow in the second message."""

    left: Tensor
    acc: Tensor
    finite: bool
    rights: int


class LowRankRegime(Regime):
    """M = residual + gradient; P = mean of M Q, made orthonormal; Q = mean of M' P; the mean is P Q', masked.

    The residual is M - P Q' with this rank's own Q (algorithm 2's error of what the rank has sent, rather than of the
    mean): its mean over ranks is the same, and what only tells ranks apart does not pile up in it. The right factors
    are kept: each step is one more power iteration on matrices that change slowly (warm start, section 4.2). Tensors
    that two factors would not shorten travel whole, their active coordinates alone. All ranks hold the same bits where
    their processors are of a kind: both factors come out of an all-reduce, and what is made of them is the same
    arithmetic. They are held transposed, which makes products with few columns two to three times quicker.
    """

    reduces = True

    def __init__(self, config: Exchange, feedback: Feedback) -> None:
        super().__init__(config, feedback)
        self.rank = config.rank
        self.keeps = "residual" in feedback.fields
        self.decay = getattr(feedback.config, "decay", 1.0)
        self.factors: dict[str, Tensor] = {}  # right ones, as Q': fp32 [rank, columns]
        self.staged: dict[int, dict[str, Tensor]] = {}

    def select(self, channel: Channel, gradients: Mapping[str, Tensor], turn: Turn) -> Factors:
        """See Regime: P' = Q' M'."""
        self._compensate(channel, gradients, turn)
        finite = bool(torch.isfinite(channel.buffer.sum())) or bool(torch.isfinite(channel.buffer).all())
        acc = channel.buffer
        if channel.active is not None:
            acc = channel.flat.zero_()
            acc[channel.active] = channel.buffer
        matrices, wholes = plan(channel, 0 if turn.warming else self.rank)
        left = torch.empty(_left(matrices) + _length(wholes), device=channel.device)
        for matrix, part in zip(matrices, _parts(left, [(m.rank, m.rows) for m in matrices]), strict=True):
            torch.mm(self._right(matrix, channel.device), matrix.view(acc).t(), out=part)
        at = _left(matrices)
        for part in wholes:
            left[at : at + part.stop - part.start] = channel.buffer[part]
            at += part.stop - part.start
        return Factors(left, acc, finite, _right(matrices))

    def _compensate(self, channel: Channel, gradients: Mapping[str, Tensor], turn: Turn) -> None:
        """Make the channel's buffer residual + gradient, in one pass where the gradients can be read as they lie."""
        plain = self.keeps and self.decay == 1.0 and turn.factor == 1.0
        parts = channel.parts(gradients) if plain else ()
        if parts:
            channel.reserve()
            sizes = [part.numel() for part in parts]
            old, new = channel.read("residual").split(sizes), channel.buffer.split(sizes)
            for residual, part, out in zip(old, parts, new, strict=True):
                torch.add(residual, part.view(-1), out=out)
            return
        channel.take(gradients, turn.factor)
        if self.keeps:
            residual = channel.read("residual")
            channel.buffer.add_(residual if self.decay == 1.0 else residual * self.decay)

    def communicate(self, channel: Channel, chosen: Factors, turn: Turn, world: World) -> Outcome:
        """See Regime: two all-reduces, P's and Q's."""
        matrices, wholes = plan(channel, 0 if turn.warming else self.rank)
        left, acc = chosen.left, chosen.acc
        if not chosen.finite:
            left.fill_(float("nan"))
        if not _mean(left, world):
            return Outcome(finite=False)
        lefts = _parts(left, [(m.rank, m.rows) for m in matrices])
        orthonormalise(lefts)
        right = torch.empty(chosen.rights, device=channel.device)
        rights = _parts(right, [(m.rank, m.columns) for m in matrices])
        for matrix, one, other in zip(matrices, lefts, rights, strict=True):
            whole = matrix.view(acc)
            torch.mm(one, whole, out=other)
            if self.keeps:  # here, while the matrix is in the cache
                whole.addmm_(one.t(), other, alpha=-1.0)
        if matrices and not _mean(right, world):
            return Outcome(finite=False)
        self._keep(channel, acc, wholes)
        self._spread(channel, matrices, wholes, lefts, rights, left[_left(matrices) :])
        self.staged[channel.index] = dict(zip([m.name for m in matrices], rights, strict=True))
        return Outcome()

    def _keep(self, channel: Channel, acc: Tensor, wholes: list[slice]) -> None:
        """Stage what did not arrive; nothing lives outside the update set."""
        if channel.active is not None:
            torch.index_select(acc, 0, channel.active, out=channel.buffer)
        for part in wholes:
            channel.buffer[part].zero_()
        if self.keeps:
            channel.stage("residual", channel.buffer)
        else:
            channel.release(channel.buffer)

    def _spread(
        self,
        channel: Channel,
        matrices: list[Matrix],
        wholes: list[slice],
        lefts: list[Tensor],
        rights: list[Tensor],
        whole: Tensor,
    ) -> None:
        """Leave the mean in the channel."""
        out = channel.mean if channel.active is None else channel.flat
        for matrix, one, other in zip(matrices, lefts, rights, strict=True):
            torch.mm(one.t(), other, out=matrix.view(out))
        if channel.active is not None:
            torch.index_select(channel.flat, 0, channel.active, out=channel.mean)
        at = 0
        for part in wholes:
            channel.mean[part] = whole[at : at + part.stop - part.start]
            at += part.stop - part.start

    def commit(self, channel: Channel) -> None:
        """See Regime. A column of zeros would stay one for ever: it begins anew."""
        super().commit(channel)
        for name, right in self.staged.pop(channel.index, {}).items():
            empty = right.abs().amax(dim=1) == 0.0
            if bool(empty.any()):
                right[empty] = start(name, *right.shape).to(right.device)[empty]
            self.factors[name] = right

    def sent(self, chosen: Factors) -> tuple[int, float]:
        """See Regime. What the factors hold of the squared norm shows only when they have arrived."""
        return chosen.left.numel() + chosen.rights, float("nan")

    def volume(self, channel: Channel, ranks: int, density: float) -> Volume:
        """See Regime: both factors and what travels whole, 2 (P-1)/P each, and 2 (P-1) latencies a message."""
        matrices, wholes = plan(channel, self.rank)
        numbers = _left(matrices) + _right(matrices) + _length(wholes)
        return Volume(2 * 4 * numbers * (ranks - 1) / ranks, (4 if matrices else 2) * (ranks - 1))

    def state(self) -> dict[str, Tensor]:
        """See Regime: the right factors."""
        return {f"{FACTOR}{name}": right.clone() for name, right in self.factors.items()}

    def load_state(self, state: Mapping[str, Tensor], ranks: int) -> None:
        """See Regime."""
        for key, tensor in state.items():
            sound = tensor.dtype == torch.float32 and tensor.dim() == 2
            if key.startswith(FACTOR) and sound and bool(torch.isfinite(tensor).all()):
                self.factors[key.removeprefix(FACTOR)] = tensor.clone()

    def restart(self) -> None:
        """See Regime."""
        self.factors.clear()

    def _right(self, matrix: Matrix, device: torch.device) -> Tensor:
        found = self.factors.get(matrix.name)
        if found is None or found.shape != (matrix.rank, matrix.columns):
            found = start(matrix.name, matrix.rank, matrix.columns).to(device)
        return found


def plan(channel: Channel, rank: int) -> tuple[list[Matrix], list[slice]]:
    """Return the matrices of a bucket, and the ranges of the tensors that travel whole (rank 0: all), in U-coordinates:
    the same on all ranks, whose update sets are the same. A sparse tensor gives two factors little to shorten."""
    bucket, edges = channel.bucket, channel.edges()
    matrices, wholes = [], []
    for at, (name, shape, begin) in enumerate(zip(bucket.names, bucket.shapes, bucket.starts, strict=True)):
        rows, columns = shape[0], math.prod(shape[1:])
        r = min(rank, rows, columns)
        if len(shape) > 1 and 0 < r * (rows + columns) < WORTH * (edges[at + 1] - edges[at]):
            matrices.append(Matrix(name, begin, rows, columns, r))
        else:
            wholes.append(slice(edges[at], edges[at + 1]))
    return matrices, wholes


def start(name: str, rank: int, columns: int) -> Tensor:
    """Return the first right factor of a tensor, fp32 [rank, columns] on the CPU: the same draw on every rank."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
    return torch.randn(rank, columns, generator=torch.Generator().manual_seed(seed))


def orthonormalise(factors: list[Tensor]) -> None:
    """Make the rows of every [rank, length] tensor orthonormal, in place (Gram-Schmidt, twice, since once is not enough
    in fp32). A row that is made of those before it becomes zero. Equal shapes go together."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for each in factors:
        shapes.setdefault(each.shape, []).append(each)
    for alike in shapes.values():
        stack = torch.stack(alike)
        for row in range(stack.shape[1]):
            own, before = stack[:, row : row + 1], stack[:, :row]
            length = own.norm(dim=2, keepdim=True)
            if row:
                for _ in range(2):
                    own -= own @ before.transpose(1, 2) @ before
            left = own.norm(dim=2, keepdim=True)
            own.mul_(torch.where(left > FLAT * length, 1.0 / left.clamp_min(1e-30), 0.0))
        for each, done in zip(alike, stack, strict=True):
            each.copy_(done)


def _parts(flat: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Return views of the beginning of `flat`, one of each shape."""
    found, at = [], 0
    for rank, length in shapes:
        found.append(flat[at : at + rank * length].view(rank, length))
        at += rank * length
    return found


def _left(matrices: list[Matrix]) -> int:
    return sum(m.rows * m.rank for m in matrices)


def _right(matrices: list[Matrix]) -> int:
    return sum(m.columns * m.rank for m in matrices)


def _length(parts: list[slice]) -> int:
    return sum(part.stop - part.start for part in parts)


def _mean(flat: Tensor, world: World) -> bool:
    """Make `flat` its mean over ranks; return whether that is finite, on all ranks alike. Collective."""
    world.transport.all_reduce(flat, "gradient")
    flat.mul_(1.0 / world.size)
    return bool(torch.isfinite(flat.sum())) or bool(torch.isfinite(flat).all())
