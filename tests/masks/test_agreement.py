import pytest
import torch

from sparsetrain.masks.agreement import MaskDisagreement, ReplicasDiffer, agree, agree_weights
from sparsetrain.masks.handover import MAGIC
from sparsetrain.masks.maskset import MaskSet

BASE = {"a": torch.zeros(4, dtype=torch.bool), "b": torch.ones(2, 5, dtype=torch.bool)}


def answers(turn: list, theirs: list[bytes]):
    """Return a gather for rank 0 of three, whose rank 1 answers with `theirs` in turn."""

    def gather(data: bytes) -> list[bytes]:
        other = theirs[len(turn)]
        turn.append(data)
        return [data, other, data]

    return gather


def sent_by(function, value) -> list[bytes]:
    """Return what a rank sends that holds `value`, when others differ from it."""
    sent: list[bytes] = []

    def gather(data: bytes) -> list[bytes]:
        sent.append(data)
        return [data, data if data[:4] == MAGIC else bytes(len(data)), data]

    function(value, gather)
    return sent


@pytest.mark.parametrize("where", ["forward", "update"])
def test_a_differing_rank_is_named_with_layer_index_and_both_values(where):
    ours = MaskSet({"a": BASE["a"], "b": torch.zeros(2, 5, dtype=torch.bool)}, 3, {"b": BASE["b"].clone()})
    masks, updates = {**ours.masks, "b": ours.masks["b"].clone()}, {"b": BASE["b"].clone()}
    (masks if where == "forward" else updates)["b"].view(-1)[7] ^= True
    theirs = sent_by(lambda value, gather: agree(value, gather, "rank0"), MaskSet(masks, 3, updates))
    name, own = ("b", 0) if where == "forward" else ("update/b", 1)
    says = rf"mask epoch 3: ranks \[1\] differ from rank 0, first at {name}\[7\]: {own} on rank 0, {1 - own} on rank 1"
    with pytest.raises(MaskDisagreement, match=says):
        agree(ours, answers([], theirs), "raise")
    taken = agree(ours, answers([], theirs), "rank0")
    assert taken.digest() == ours.digest() and taken.first_difference(ours) is None


def test_ranks_in_different_epochs_do_not_agree():
    theirs = sent_by(lambda value, gather: agree(value, gather, "rank0"), MaskSet(BASE, 4))
    with pytest.raises(MaskDisagreement, match="in their epoch"):
        agree(MaskSet(BASE, 3), answers([], theirs), "raise")


def test_sixteen_bytes_travel_when_all_agree():
    sent: list[bytes] = []

    def gather(data: bytes) -> list[bytes]:
        sent.append(data)
        return [data, data]

    masks = MaskSet(BASE, 0)
    assert agree(masks, gather, "raise") is masks
    assert agree_weights({"w": torch.ones(5)}, gather, "raise") == []
    assert [len(data) for data in sent] == [16, 16]


def weights(flip: bool) -> dict[str, torch.Tensor]:
    tensors = {"w": torch.arange(6.0).view(2, 3), "v": torch.ones(3)}
    if flip:  # one bit: the sign of a number
        tensors["v"].view(torch.int32)[2] ^= -(2**31)
    return tensors


def test_one_flipped_bit_of_a_weight_is_named_with_both_values():
    theirs = sent_by(lambda value, gather: agree_weights(value, gather, "rank0"), weights(True))
    with pytest.raises(ReplicasDiffer, match=r"ranks \[1\] differ .* first at v\[2\]: 1\.0 on rank 0, -1\.0 on rank 1"):
        agree_weights(weights(False), answers([], [theirs[0], theirs[1], theirs[3]]), "raise")


def test_the_weights_of_rank_zero_are_taken_where_the_job_says_so():
    from sparsetrain.collective.simulated import Simulation

    def body(world):
        mine = weights(world.rank == 1)
        changed = agree_weights(mine, world.transport.gather_bytes, "rank0")
        return changed, mine

    for changed, mine in Simulation(3).run(body):
        assert changed == ["v"]
        assert all(torch.equal(mine[name], tensor) for name, tensor in weights(False).items())
