import pytest
import torch
from ranks import gloo_ranks

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.transport import Alone
from sparsetrain.collective.world import World


def exercise(world: World) -> dict:
    transport, rank = world.transport, world.rank
    reduced = torch.arange(4.0) + rank
    transport.all_reduce(reduced, "gradient")
    shared = torch.full((3,), float(rank))
    transport.broadcast(shared, "control", source=world.size - 1)
    return {
        "reduced": reduced.tolist(),
        "gathered": [part.tolist() for part in transport.all_gather(torch.tensor([rank, 7]), "mask")],
        "shared": shared.tolist(),
        "ordered": transport.rank_ordered_sum(torch.tensor([float(rank + 1)]), "gradient").tolist(),
        "bytes": transport.gather_bytes(b"x" * rank),
        "sent": dict(transport.meter.sent),
    }


def expected(size: int, rank: int) -> dict:
    peers = size - 1
    return {
        "reduced": [size * i + sum(range(size)) for i in range(4)],
        "gathered": [[r, 7] for r in range(size)],
        "shared": [float(size - 1)] * 3,
        "ordered": [float(sum(range(1, size + 1)))],
        "bytes": [b"x" * r for r in range(size)],
        "sent": {
            "gradient": 2 * 16 * peers / size + 4 * peers,
            "mask": 16.0 * peers,
            "control": (12 * peers if rank == peers and peers else 0) + (8 + max(1, peers)) * peers,
        },
    }


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_simulated_ranks(size):
    for rank, found in enumerate(Simulation(size).run(exercise)):
        assert found == expected(size, rank)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [2, 3])
def test_gloo_ranks(size):
    for rank, found in enumerate(gloo_ranks(size, exercise)):
        assert found == expected(size, rank)


def test_alone_sends_nothing():
    world = World(transport=Alone())
    assert exercise(world) == expected(1, 0)
    assert world.transport.meter.total == 0


def test_a_failing_rank_ends_the_simulation_with_its_own_error():
    def body(world: World) -> None:
        if world.rank == 1:
            raise KeyError("only rank 1")
        world.transport.barrier()

    with pytest.raises(KeyError, match="only rank 1"):
        Simulation(3).run(body)
