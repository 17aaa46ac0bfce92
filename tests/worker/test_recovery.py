"""Workers die at every point of a step; the others go on from memory, and nothing is wrong afterwards."""

import pytest
from company import Company, Fault

pytestmark = [pytest.mark.timeout(120), pytest.mark.chaos]
# Nothing is kept back, so nothing dies with a rank: the result is that of a run in which nobody died, bit for bit.
LOSSLESS = ("exchange.regime=dense", "exchange.values=fp32", "optimizer.momentum=0.9", "log.every=2")
FAULTS = [
    *((point, 5) for point in ("forward", "backward", "exchange", "arrived", "word")),
    *((point, 3) for point in ("word",)),
    *((point, 4) for point in ("masks", "agreed", "changed", "recorded", "forward")),
    *((point, 6) for point in ("evaluate", "record", "recorded")),
    ("forward", 0),
    ("evaluate", 12),
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The result of the lossless run in which nobody dies, by optimizer."""
    found = {}
    for optimizer in ("sgd", "adamw"):
        with Company(tmp_path_factory.mktemp(optimizer), *options(optimizer)) as company:
            for number in range(3):
                company.hire(number)
            said = company.group(0, 1, 2)
            found[optimizer] = said[0][1]
    return found


def options(optimizer):
    other = ("optimizer={name: adamw, learning_rate: 0.01}",) if optimizer == "adamw" else ()
    return tuple(o for o in LOSSLESS if not (other and o.startswith("optimizer"))) + other


@pytest.mark.parametrize(("point", "step"), FAULTS)
def test_a_rank_dies_and_its_replacement_makes_no_difference(tmp_path, straight, point, step):
    with Company(tmp_path, *options("sgd")) as company:
        for number in range(3):
            company.hire(number, Fault(point, step) if number == 1 else None)
        said = company.group(0, 1, 2)
        assert {number: word for number, (word, _) in said.items()} == {0: "lost", 1: "dead", 2: "lost"}
        company.hire(3)
        said = company.group(0, 3, 2)
    for number in (0, 3, 2):
        assert said[number][0] == "result", said
        assert said[number][1]["weights_digest"] == straight["sgd"]["weights_digest"]
        assert said[number][1]["eval/loss"] == straight["sgd"]["eval/loss"]
