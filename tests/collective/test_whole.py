import pytest
import torch

from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.whole import whole_sum
from sparsetrain.collective.world import World


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 6, 7, 8, 13, 16])
def test_all_ranks_get_the_sum(ranks: int, dtype: torch.dtype):
    def body(world: World):
        own = torch.arange(5, dtype=dtype) * (world.rank + 1) - 3
        found = whole_sum(own, world.transport)
        return found, own, world.transport.meter.total

    results = Simulation(ranks).run(body)
    total = sum(own for _, own, _ in results)
    assert all(torch.equal(found, total) and found.dtype == dtype for found, _, _ in results)
    most = max(sent for _, _, sent in results)
    assert most <= 5 * total.element_size() * (ranks.bit_length() - 1 + (ranks & (ranks - 1) > 0))
