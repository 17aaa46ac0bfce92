import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetrain import registry
from sparsetrain.collective.entries import Entries
from sparsetrain.collective.payload import HEADER, Codec, CorruptPayload, Frame

FRAME = Frame(size=1000, epoch=3, bucket=2)
CODES = [(i, v) for i in registry.names("index_code") for v in registry.names("value_code")]


def codec(indices: str = "int32", values: str = "fp32") -> Codec:
    built = [registry.load(kind, name) for kind, name in (("index_code", indices), ("value_code", values))]
    return Codec(*(cls(cls.Config()) for cls in built))


def entries(count: int = 3, seed: int = 0) -> Entries:
    draw = torch.Generator().manual_seed(seed)
    places = torch.randperm(1000, generator=draw)[:count].sort().values.int()
    return Entries(places, torch.randn(count, generator=draw))


@pytest.mark.parametrize(("indices", "values"), CODES)
@pytest.mark.parametrize("count", [0, 1, 3, 300, 1000])
def test_places_come_back_exactly_and_values_within_their_code(indices, values, count):
    sent, ways = entries(count), codec(indices, values)
    message = ways.encode(sent, FRAME)
    if ways.fixed:
        assert message.numel() == ways.bytes(count, FRAME.size)
    got = ways.decode(message, FRAME, 0)
    assert torch.equal(got.indices, sent.indices)
    error = (got.values - sent.values).norm() / max(float(sent.values.norm()), 1e-9)
    assert error <= {"fp32": 0, "bf16": 4e-3, "int8": 1e-2, "int4": 0.2}[values]


@pytest.mark.parametrize("values", registry.names("value_code"))
def test_shared_places_do_not_travel(values):
    ways = codec("auto", values)
    sent = Entries(None, torch.randn(1000), shared=True)
    message = ways.encode(sent, FRAME)
    assert message.numel() == ways.bytes(1000, 1000, shared=True) == HEADER.size + ways.values.bytes(1000)
    assert ways.decode(message, FRAME, 0, sent).indices is None
    with pytest.raises(CorruptPayload, match="without places"):
        ways.decode(message, FRAME, 0)


def test_auto_takes_the_shortest():
    ways = codec("auto")
    for count in (1, 10, 100, 400, 900):
        sent = entries(count)
        shortest = min(
            codec(name).encode(sent, FRAME).numel() for name in registry.names("index_code") if name != "auto"
        )
        assert ways.encode(sent, FRAME).numel() == shortest


def test_not_finite_travels_in_the_header():
    ways = codec()
    message = ways.encode(Entries(torch.tensor([0, 1], dtype=torch.int32), torch.zeros(2), finite=False), FRAME)
    assert not ways.decode(message, FRAME, 0).finite


def resummed(message: torch.Tensor) -> torch.Tensor:
    """Return the message with the checksum that its content has, as an attacker would send it."""
    from sparsetrain.collective import payload

    message = message.clone()
    total = payload._checksum(message).to_bytes(payload.SUM, "little")
    message[HEADER.size - payload.SUM : HEADER.size] = torch.tensor(list(total), dtype=torch.uint8)
    return message


def edited(message: torch.Tensor, indices: list[int]) -> torch.Tensor:
    message = message.clone()
    message[HEADER.size : HEADER.size + 12] = torch.tensor(indices, dtype=torch.int32).view(torch.uint8)
    return resummed(message)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m[:-1], "bytes, expected"),
        (lambda m: m[:10], "header"),
        (lambda m: torch.cat([torch.zeros(4, dtype=torch.uint8), m[4:]]), "header"),
        (lambda m: edited(m, [5, 1, 9]), "not ascending"),
        (lambda m: edited(m, [1, 1, 9]), "not ascending"),
        (lambda m: edited(m, [1, 5, 1000]), "not ascending in 0..999"),
        (lambda m: edited(m, [-1, 5, 9]), "not ascending"),
        (lambda m: resummed(torch.cat([m[:-4], torch.tensor([float("nan")]).view(torch.uint8)])), "not finite"),
        (lambda m: torch.cat([m[:-1], m[-1:] ^ 1]), "checksum"),
    ],
)
def test_damaged_messages_are_refused_and_name_the_sender(change, says):
    with pytest.raises(CorruptPayload, match=says) as caught:
        codec().decode(change(codec().encode(entries(), FRAME)), FRAME, 7)
    assert "rank 7" in str(caught.value)


@pytest.mark.parametrize("other", [Frame(77, 3, 2), Frame(1000, 77, 2), Frame(1000, 3, 77), Frame(1000, 3, 2, 77)])
def test_a_message_of_another_mask_epoch_bucket_part_or_size_is_refused(other):
    sent = Entries(torch.tensor([1, 5], dtype=torch.int32), torch.ones(2))
    with pytest.raises(CorruptPayload, match="expected"):
        codec().decode(codec().encode(sent, other), FRAME, 1)


def test_a_code_that_the_job_does_not_name_and_another_count_are_refused():
    message = codec("bitmap").encode(entries(), FRAME)
    with pytest.raises(CorruptPayload, match="index code 5"):
        codec("int32").decode(message, FRAME, 1)
    with pytest.raises(CorruptPayload, match="value code"):
        codec("bitmap", "bf16").decode(message, FRAME, 1)
    with pytest.raises(CorruptPayload, match="3 entries, expected 4"):
        codec("bitmap").decode(message, FRAME, 1, entries(4))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CODES), st.integers(1, 400), st.data())
def test_any_damage_is_refused_or_gives_places_in_order_and_range(codes, count, data):
    ways = codec(*codes)
    message = ways.encode(entries(count), FRAME)
    at = data.draw(st.integers(0, message.numel() - 1))
    message[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        message = resummed(message)
    try:
        got = ways.decode(message, FRAME, 0)
    except CorruptPayload:
        return
    places = got.indices.long()
    assert torch.all(places[1:] > places[:-1]) and places.min() >= 0 and places.max() < 1000
    assert bool(torch.isfinite(got.values).all())
