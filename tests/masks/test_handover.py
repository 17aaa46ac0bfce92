import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsetrain.config.component import adapter
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController
from sparsetrain.masks.handover import CorruptHandover, pack, unpack
from sparsetrain.masks.maskset import MaskSet


def masks_of(method: str) -> MaskSet:
    """Return the masks of two odd-sized tensors after an update."""
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.nn.Parameter(torch.randn(7, size, generator=draw)) for name, size in (("a", 11), ("b", 5))}
    config = adapter(Masks).validate_python({"method": method, "sparsity": 0.5, "every": 2})
    found = MaskController(config, tensors, maskable=list(tensors), seed=0, steps=10)
    found.step(2, None)
    return found.masks


@pytest.mark.parametrize("method", ["set", "topkast", "static"])
def test_a_newcomer_gets_both_sets_the_epoch_and_the_digest(method):
    masks = masks_of(method)
    data = pack(masks)
    assert len(data) == 28 + 2 * (10 + 5)
    found = unpack(data, {name: torch.empty_like(mask) for name, mask in masks.masks.items()})
    assert found.digest() == masks.digest() and found.epoch == masks.epoch == (0 if method == "static" else 1)
    assert found.first_difference(masks) is None and found.updates.keys() == masks.updates.keys()


@given(st.data())
@pytest.mark.parametrize("method", ["set", "topkast"])
def test_no_flipped_bit_comes_through(method, data):
    """Not in the header, the sets or the bits that fill the last byte of each up."""
    masks = masks_of(method)
    message = bytearray(pack(masks))
    message[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = unpack(bytes(message), masks.masks)
    except CorruptHandover as error:
        assert str(error).startswith("masks: ") and "\n" not in str(error)
    else:
        assert found.digest() == masks.digest()  # a filling bit says nothing


@pytest.mark.parametrize("cut", [0, 5, 28, 57])
def test_a_short_or_long_message_is_refused_with_both_lengths(cut):
    masks = masks_of("set")
    with pytest.raises(CorruptHandover, match=rf"masks: {cut} bytes, but those of this model have 58"):
        unpack(pack(masks)[:cut], masks.masks)
    with pytest.raises(CorruptHandover, match="masks: 59 bytes"):
        unpack(pack(masks) + b"\0", masks.masks)


@pytest.mark.parametrize(
    "like",
    [
        {"a": torch.empty(11, 7), "b": torch.empty(7, 5)},
        {"b": torch.empty(7, 11), "a": torch.empty(7, 5)},
        {"a": torch.empty(7, 11), "c": torch.empty(7, 5)},
    ],
    ids=["shape", "order", "name"],
)
def test_the_masks_of_another_model_are_refused_also_where_their_size_is_the_same(like):
    with pytest.raises(CorruptHandover, match="but their sender's is"):
        unpack(pack(masks_of("set")), like)
