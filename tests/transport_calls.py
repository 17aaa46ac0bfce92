"""What every transport has to do, as bodies that any kind of ranks can run, and what must come out of them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsetrain.collective.transport import Transport
from sparsetrain.collective.world import World

DTYPES = {str(dtype): dtype for dtype in (torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16)}
LENGTH = 8
LONG = 40_000  # elements: more than what transports treat as short


def values(dtype: torch.dtype, count: int, *seed: int) -> Tensor:
    """Return `count` small whole numbers that depend on the seeds: their sums are exact in every dtype."""
    start = sum((place + 3) * number for place, number in enumerate(seed))
    return ((torch.arange(count) * 5 + start * 7) % 11).to(dtype)


def gather_lengths(size: int) -> list[list[int]]:
    """Return, per case, every rank's length: some empty, all equal, all different, all empty, some long."""
    few = [[0 if r % 2 else 5 for r in range(size)], [4] * size, [3 * r + 1 for r in range(size)], [0] * size]
    return [*few, [17_000 * ((r + 1) % 3) for r in range(size)]]


def swap_length(case: int, source: int, to: int) -> int:
    return [(source + 2 * to) % 4, 3, 0][case]


def strided(tensor: Tensor) -> Tensor:
    """Return an equal 1-D tensor that lies with gaps in memory."""
    wide = torch.full((2 * tensor.numel(),), 9, dtype=tensor.dtype)
    wide[::2] = tensor
    return wide[::2]


def transposed(tensor: Tensor) -> Tensor:
    """Return the tensor's numbers as a transposed matrix."""
    return tensor.view(3, 4).t()


def conformance(world: World) -> dict[str, Any]:
    """Return what all calls gave, by dtype and call, and what each booked."""
    results = {name: _calls(world, dtype) for name, dtype in DTYPES.items()}
    return {"results": results, "bytes": [list(data) for data in world.transport.gather_bytes(b"x" * world.rank)]}


def _calls(world: World, dtype: torch.dtype) -> dict[str, Any]:
    transport, rank, size = world.transport, world.rank, world.size
    found: dict[str, Any] = {}
    booked = _Booked(transport)
    for layout in ("contiguous", "transposed"):
        lay = transposed if layout == "transposed" else Tensor.clone
        reduced = lay(values(dtype, 12, rank))
        transport.all_reduce(reduced, "gradient")
        found[f"all_reduce {layout}"] = [reduced, booked("gradient")]
        gathered = transport.all_gather(lay(values(dtype, 12, rank)), "mask")
        found[f"all_gather {layout}"] = [torch.stack(gathered), booked("mask")]
        found[f"all_gather long {layout}"] = [transport.all_gather(values(dtype, LONG, rank), "mask"), booked("mask")]
        shared = lay(values(dtype, 12, rank))
        transport.broadcast(shared, "control", source=size - 1)
        found[f"broadcast {layout}"] = [shared, booked("control")]
        lay = strided if layout == "transposed" else Tensor.clone
        for case, lengths in enumerate(gather_lengths(size)):
            parts = transport.all_gather_v(lay(values(dtype, lengths[rank], rank, case)), "mask")
            found[f"all_gather_v {layout} {case}"] = [parts, booked("mask")]
            parts = transport.all_gather_v(lay(values(dtype, lengths[rank], rank, case)), "mask", lengths)
            found[f"all_gather_v {layout} {case} sized"] = [parts, booked("mask")]
        for case in range(3):
            parts = [lay(values(dtype, swap_length(case, rank, to), rank, to)) for to in range(size)]
            sizes = [swap_length(case, source, rank) for source in range(size)]
            found[f"all_to_all_v {layout} {case}"] = [transport.all_to_all_v(parts, "gradient"), booked("gradient")]
            arrived = transport.all_to_all_v(parts, "gradient", sizes)
            found[f"all_to_all_v {layout} {case} sized"] = [arrived, booked("gradient")]
    return found


def check_conformance(found: dict[str, Any], rank: int, size: int) -> None:
    """Assert that rank `rank` of `size` found what was to be found, by plain arithmetic on one process."""
    assert found["bytes"] == [[ord("x")] * r for r in range(size)]
    for name, dtype in DTYPES.items():
        expected = _expected(dtype, rank, size)
        assert found["results"][name].keys() == expected.keys()
        for call, (value, sent) in expected.items():
            got, booked = found["results"][name][call]
            where = f"{name} {call} on rank {rank} of {size}"
            assert booked == pytest.approx(sent), where
            if isinstance(value, Tensor):
                value, got = [value], [got]
            assert len(got) == len(value), where
            for one, other in zip(got, value, strict=True):
                assert one.dtype == dtype and torch.equal(one, other), where


def _expected(dtype: torch.dtype, rank: int, size: int) -> dict[str, Any]:
    peers, item = size - 1, torch.empty(0, dtype=dtype).element_size()
    found: dict[str, Any] = {}
    for layout in ("contiguous", "transposed"):
        lay = transposed if layout == "transposed" else Tensor.clone
        all_values = torch.stack([lay(values(dtype, 12, r)) for r in range(size)])
        total = all_values.long().sum(0).to(dtype)
        found[f"all_reduce {layout}"] = (total, 2 * 12 * item * peers / size)
        found[f"all_gather {layout}"] = (all_values, 12 * item * peers)
        found[f"all_gather long {layout}"] = ([values(dtype, LONG, r) for r in range(size)], LONG * item * peers)
        found[f"broadcast {layout}"] = (all_values[-1], 12 * item * peers if rank == peers else 0)
        for case, lengths in enumerate(gather_lengths(size)):
            parts = [values(dtype, length, r, case) for r, length in enumerate(lengths)]
            found[f"all_gather_v {layout} {case}"] = (parts, (LENGTH + lengths[rank] * item) * peers)
            found[f"all_gather_v {layout} {case} sized"] = (parts, lengths[rank] * item * peers)
        for case in range(3):
            parts = [values(dtype, swap_length(case, source, rank), source, rank) for source in range(size)]
            sent = sum(swap_length(case, rank, to) for to in range(size) if to != rank) * item
            found[f"all_to_all_v {layout} {case}"] = (parts, sent + LENGTH * peers)
            found[f"all_to_all_v {layout} {case} sized"] = (parts, sent)
    return found


class _Booked:
    """Each call returns the bytes booked under a kind since the last call, which must be all that were booked."""

    def __init__(self, transport: Transport) -> None:
        self.meter = transport.meter
        self.before = dict(self.meter.sent)

    def __call__(self, kind: str) -> float:
        new = {name: count - self.before[name] for name, count in self.meter.sent.items()}
        self.before = dict(self.meter.sent)
        assert all(count == 0 for name, count in new.items() if name != kind), new
        return new[kind]


def same_bits(world: World) -> list[Tensor]:
    """Return sums of numbers that do round: fp32 and bf16 of tensors that require grad, then one in rank order."""
    generator = torch.Generator().manual_seed(world.rank)
    sums = []
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.randn(1001, generator=generator).to(dtype).requires_grad_()
        world.transport.all_reduce(tensor, "gradient")
        sums.append(tensor.detach())
    return [*sums, world.transport.rank_ordered_sum(_summand(world.rank), "gradient")]


def check_same_bits(found: list[list[Tensor]]) -> None:
    ordered = sum((_summand(rank) for rank in range(1, len(found))), start=_summand(0))
    for sums in found:
        assert all(torch.equal(mine, first) for mine, first in zip(sums, found[0], strict=True))
        assert torch.equal(sums[2], ordered)


def _summand(rank: int) -> Tensor:
    return torch.randn(99, generator=torch.Generator().manual_seed(100 + rank))


ROUNDS = 40


def two_threads(world: World) -> dict[str, Any]:
    """Use the transport and its twin in two threads at once, each with calls of its own, and check every answer."""
    transport = world.transport
    twin = transport.twin()
    failures: list[BaseException] = []
    both = threading.Barrier(2, timeout=30)

    def work(mine: Transport, length: int) -> None:
        try:
            both.wait()
            for turn in range(ROUNDS):
                parts = mine.all_gather_v(values(torch.int64, length + world.rank, world.rank, turn), "mask")
                for source, part in enumerate(parts):
                    assert torch.equal(part, values(torch.int64, length + source, source, turn))
                total = torch.full((length,), float(turn))
                mine.all_reduce(total, "mask")
                assert torch.equal(total, torch.full((length,), float(turn * world.size)))
        except BaseException as error:
            failures.append(error)

    other = threading.Thread(target=work, args=(twin, 1000))
    other.start()
    work(transport, 10)
    other.join()
    if failures:
        raise failures[0]
    result = {"sent": dict(transport.meter.sent), "same": transport.meter is twin.meter}
    transport.barrier()
    twin.close()
    twin.close()
    with pytest.raises(RuntimeError, match="closed"):
        twin.all_reduce(torch.ones(1), "mask")
    again = transport.twin()
    again.barrier()
    transport.close()  # closes the second twin, and is itself still open
    with pytest.raises(RuntimeError, match="closed"):
        again.barrier()
    transport.barrier()
    return result


def check_two_threads(found: dict[str, Any], rank: int, size: int) -> None:
    peers = size - 1
    per_turn = sum((LENGTH + 8 * (length + rank)) * peers + 2 * 4 * length * peers / size for length in (10, 1000))
    assert found["same"]
    assert found["sent"]["mask"] == pytest.approx(ROUNDS * per_turn)
