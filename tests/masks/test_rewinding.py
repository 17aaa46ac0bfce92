"""What a lottery keeps comes back only to the job that kept it."""

import pytest
import torch
from torch import nn

from sparsetrain.masks.rewinding import STEP, Rewinding


def kept(step: int) -> Rewinding:
    made = Rewinding({"w": nn.Parameter(torch.arange(4.0))}, step)
    made.reached(step)
    return made


def test_a_copy_goes_round():
    state = kept(4).state()
    other = Rewinding({"w": nn.Parameter(torch.zeros(4))}, 4)
    other.load_state(state)
    other.rewind()
    assert torch.equal(other.parameters["w"], torch.arange(4.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({STEP: torch.tensor([8])}, "rewinds to step 8, this job to step 4"),
        ({STEP: None}, "rewinds to step None"),
        ({"w": torch.full((4,), float("nan"))}, "rewind/w is not finite"),
        ({"w": torch.zeros(3)}, r"rewind/w is torch.float32 \(3,\)"),
        ({"w": torch.zeros(4, dtype=torch.int64)}, "rewind/w is torch.int64"),
        ({"w": None, "v": torch.zeros(4)}, "no rewind/w"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    state = {name: tensor for name, tensor in {**kept(4).state(), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        kept(4).load_state(state)
