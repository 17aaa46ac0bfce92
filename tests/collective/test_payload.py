import pytest
import torch

from sparsetrain.collective.payload import HEADER, CorruptPayload, Payload, decode


def payload(dtype=torch.float32) -> Payload:
    return Payload(torch.tensor([1, 5, 9], dtype=torch.int32), torch.tensor([1.0, -2.0, 0.5]).to(dtype), 10, 3, 2)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_round_trip_and_byte_size(dtype, width):
    message = payload(dtype).encode()
    assert message.nbytes == HEADER.size + 3 * (4 + width)
    indices, values = decode(message, payload(dtype), 0)
    assert indices.tolist() == [1, 5, 9] and values.tolist() == [1.0, -2.0, 0.5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m[:-1], "bytes, expected"),
        (lambda m: m[:10], "header"),
        (lambda m: torch.cat([torch.zeros(4, dtype=torch.uint8), m[4:]]), "header"),
        (lambda m: edit(m, [5, 1, 9]), "not ascending"),
        (lambda m: edit(m, [1, 1, 9]), "not ascending"),
        (lambda m: edit(m, [1, 5, 10]), "not ascending in 0..9"),
        (lambda m: edit(m, [-1, 5, 9]), "not ascending"),
        (lambda m: torch.cat([m[:-4], torch.tensor([float("nan")]).view(torch.uint8)]), "not finite"),
    ],
)
def test_damaged_messages_are_refused_and_name_the_sender(change, says):
    with pytest.raises(CorruptPayload, match=says) as caught:
        decode(change(payload().encode()), payload(), 7)
    assert "rank 7" in str(caught.value)


def edit(message: torch.Tensor, indices: list[int]) -> torch.Tensor:
    message = message.clone()
    message[HEADER.size : HEADER.size + 12] = torch.tensor(indices, dtype=torch.int32).view(torch.uint8)
    return message


@pytest.mark.parametrize("field", ["size", "epoch", "bucket"])
def test_a_message_of_another_mask_epoch_bucket_or_size_is_refused(field):
    other = Payload(**{**payload().__dict__, field: 77})
    with pytest.raises(CorruptPayload, match="expected"):
        decode(other.encode(), payload(), 1)
