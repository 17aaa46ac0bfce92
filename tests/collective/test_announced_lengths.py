import pytest
import torch

from sparsetrain.collective.transport import LARGEST, Alone


class Liar(Alone):
    """Two ranks, of which the other announces `length` elements and never gets to send them."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.size, self.length = 2, length

    def _all_to_all_v(self, parts, sizes):
        assert list(sizes) == [1, 1], "memory is taken for what the other rank says it sends"
        return [parts[0], torch.tensor([self.length], dtype=parts[0].dtype)]


@pytest.mark.parametrize("length", [-1, -(2**63), LARGEST + 1, 2**63 - 1])
def test_a_length_that_no_rank_sends_is_refused_before_memory_is_taken(length):
    with pytest.raises(ValueError, match=rf"rank 1 is about to send {length} elements"):
        Liar(length).gather_bytes(b"abc")
