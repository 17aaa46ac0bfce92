"""Workers die at every point of a step; the others go on from memory, and nothing is wrong afterwards."""

import json

import pytest
import torch
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
    ("end", 12),
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


@pytest.mark.parametrize(
    ("point", "step"), [("changed", 4), *(pytest.param(p, 4, marks=pytest.mark.slow) for p in ("masks", "forward"))]
)
def test_neither_does_it_where_only_active_weights_are_held(tmp_path, point, step):
    wanted = (*options("adamw"), "compute=sparse")
    digests = set()
    for fault in (None, Fault(point, step)):
        with Company(tmp_path / point / str(fault), *wanted) as company:
            for number in range(2):
                company.hire(number, fault if number == 1 else None)
            said = company.group(0, 1)
            if fault is not None:
                assert {number: word for number, (word, _) in said.items()} == {0: "lost", 1: "dead"}
                company.hire(2)
                said = company.group(0, 2)
        assert all(word == "result" for word, _ in said.values()), said
        digests |= {value["weights_digest"] for _, value in said.values()}
    assert len(digests) == 1


@pytest.mark.parametrize(("point", "step"), [("word", 3), ("word", 5), ("changed", 4), ("recorded", 4)])
def test_survivors_that_are_one_apart_come_together(tmp_path, straight, point, step):
    """Rank 0 gives up where rank 1 dies, rank 2 knows nothing of it and goes ahead."""
    with Company(tmp_path, *options("adamw")) as company:
        company.hire(0, Fault(point, step, dies=False))
        company.hire(1, Fault(point, step))
        company.hire(2)
        said = company.group(0, 1, 2)
        assert said[1][0] == "dead" and said[0][0] == said[2][0] == "lost"
        company.hire(3)
        said = company.group(2, 0, 3)
    for number in (0, 3, 2):
        assert said[number][0] == "result", said
        assert said[number][1]["weights_digest"] == straight["adamw"]["weights_digest"]


def sight(trainer):
    """Return what a member shows of itself between two groups."""
    state = trainer.state
    return {
        "opened": trainer.opened,
        "closed": state.exchange.closed,
        "at": state.at,
        "same": (state.at, state.weights_digest(), state.masks and state.masks.masks.digest().hex()),
        "batch": state.global_batch,
    }


def mean(seen, what):
    return torch.stack([each[what] for each in seen.values()]).mean(0)


GROUPS = "exchange.collective={name: hierarchical, group: 2}"
SPARSE = ("exchange.density=0.05", "exchange.values=fp32", "train.steps=4000", "train.evaluate_every=4000")
KINDS = [
    (),
    ("optimizer={name: adamw, learning_rate: 0.01}",),
    ("exchange.error_feedback=dgc", "optimizer.momentum=0"),
    ("exchange.collective=ok_topk", "train.resize=scaled"),
    (GROUPS,),
    ("exchange.regime=lowrank", "exchange.rank=1", "masks=null"),
    ("masks=null",),
    ("exchange.every=2", "exchange.outer.momentum=0.5"),
    pytest.param(("compute=sparse", "exchange.every=2", "exchange.outer.momentum=0.5"), marks=pytest.mark.slow),
]


def test_a_wish_for_another_group_is_kept_while_one_is_being_made(tmp_path):
    with Company(tmp_path, *options("sgd")) as company:
        for number in range(2):
            company.hire(number)
        company.ask(0)
        said = company.group(0, 1)
        assert all(word == "result" and value["paused"] for word, value in said.values()), said
        said = company.group(0, 1)
        assert all(word == "result" and "paused" not in value for word, value in said.values()), said


@pytest.mark.parametrize("overrides", KINDS, ids=str)
def test_four_become_two_in_order_and_then_three(tmp_path, overrides):
    """The mean of what is owed stays, every sample is taken once, replicas are equal."""
    wanted = (*SPARSE, "cluster.workers={min: 1, max: 4}", "train.batch_size=3", "masks.every=400", *overrides)
    with Company(tmp_path, *wanted) as company:
        for number in range(4):
            company.hire(number)
        company.begin(0, 1, 2, 3)
        company.reach(0, 10)
        for number in (1, 3):
            company.ask(number, leave=True)
        said = company.end(0, 1, 2, 3)
        assert all(word == "result" and value["paused"] for word, value in said.values()), said
        four = {n: company.look(n, sight) for n in range(4)}
        staying = [n for n in range(4) if not said[n][1]["leaving"]]
        company.begin(*staying)
        company.reach(0, four[0]["at"].step + 5)
        company.ask(0)
        assert all(value["paused"] for _, value in company.end(*staying).values())
        fewer = {n: company.look(n, sight) for n in staying}
        company.hire(4)
        company.begin(*staying, 4)
        company.reach(4, fewer[0]["at"].step + 5)
        company.ask(0)
        assert all(value["paused"] for _, value in company.end(*staying, 4).values())
        more = {n: company.look(n, sight) for n in (*staying, 4)}
    assert len(staying) < 4 and four[0]["at"].step < fewer[0]["at"].step < more[0]["at"].step
    for seen in (four, fewer, more):
        assert len({each["same"] for each in seen.values()}) == 1
        workers = len(seen) if "train.resize=scaled" in overrides else 4
        assert all(each["batch"] == 3 * workers for each in seen.values())
    assert four[0]["at"].samples == 12 * four[0]["at"].step
    for before, after in ((four, fewer), (fewer, more)):
        one, other = mean(before, "closed"), mean(after, "opened")
        assert torch.norm(one) > 0 and torch.norm(one - other) <= 1e-6 * torch.norm(one)


ADAMW = "optimizer={name: adamw, learning_rate: 0.01}"
WAYS = [
    (("exchange.error_feedback=ef21",), "forward", 5),
    (("exchange.error_feedback=ef21_sgdm", "optimizer.momentum=0"), "word", 6),
    (("exchange.every=4", ADAMW, "train.evaluate_every=4"), "forward", 6),
    (("exchange.every=4", ADAMW, "train.evaluate_every=4", "exchange.outer.momentum=0.5"), "exchange", 7),
    (("exchange.every=4", ADAMW, "train.evaluate_every=4"), "word", 7),
    (("exchange.regime=lowrank", "exchange.rank=1", "masks=null"), "arrived", 5),
    (("exchange.regime=auto", "masks=null"), "exchange", 7),
    (("exchange.regime=packed", "masks={method: movement, sparsity: 0.8, every: 4, end: 0.9}"), "forward", 6),
    (("masks={method: topkast, sparsity: 0.8, every: 4, end: 0.9}",), "agreed", 4),
    (("masks={method: obd, sparsity: 0.8, every: 4, end: 0.9}",), "backward", 7),
    (("masks={method: str, sparsity: 0.8, every: 4, end: 0.9, distribution: global}",), "forward", 5),
    (("masks={method: gmp, sparsity: 0.8, every: 4, end: 0.9}", ADAMW), "changed", 8),
    (("exchange.collective=ok_topk", "exchange.residual=int8"), "exchange", 6),
    ((GROUPS,), "exchange", 6),
    ((GROUPS, "exchange.error_feedback=ef21"), "arrived", 5),
    (("exchange.collective=gtopk",), "word", 6),
    (("exchange.error_feedback=dgc", "optimizer.momentum=0", "train.accumulate=2"), "recorded", 6),
]
COMPUTING = [
    (("compute=sparse", ADAMW), "changed", 4, False),
    pytest.param(("compute=auto", ADAMW), "agreed", 4, True, marks=pytest.mark.slow),
    pytest.param(
        ("compute=sparse", "exchange.every=4", ADAMW, "train.evaluate_every=4"),
        "exchange",
        7,
        True,
        marks=pytest.mark.slow,
    ),
]
FEWER = ("exchange.error_feedback=ef21", "exchange.every=4", "exchange.collective=ok_topk", GROUPS)


@pytest.mark.parametrize(
    ("overrides", "point", "step", "replaced"),
    [*((*way, True) for way in WAYS), *((*way, False) for way in WAYS if way[0][0] in FEWER), *COMPUTING],
    ids=str,
)
def test_whatever_is_trained_goes_on(tmp_path, overrides, point, step, replaced):
    """Ranks hold the same weights and masks at the end, which the loop itself compares at every evaluation."""
    wanted = ("cluster.workers={min: 1, max: 3}", "exchange.density=0.1", *overrides)
    with Company(tmp_path, *wanted) as company:
        for number in range(3):
            company.hire(number, Fault(point, step) if number == 2 else None)
        said = company.group(0, 1, 2)
        assert said[2][0] == "dead", said
        if replaced:
            company.hire(3)
        last = company.group(0, 1, *((3,) if replaced else ()))
    assert all(word == "result" for word, _ in last.values()), last
    assert len({value["weights_digest"] for _, value in last.values()}) == 1
    assert {value["steps"] for _, value in last.values()} == {12}
    assert last[0][1]["eval/loss"] < 5.6


ROWS = ((1, 3, (1, 2, 3)), (1, 3, (3, 1, 2)), (4, 2, (1, 2, 3)), (4, 1, (3, 1, 2)), (4, 4, (1, 2, 3)))


@pytest.mark.parametrize("who", [0, 1])
def test_every_row_is_written_once(tmp_path, who):
    """Rank `who` dies with the row of step 6 behind it; another rank believes so before it has seen that row's end."""
    other = 2
    with Company(tmp_path, *options("sgd")) as company:
        for number in range(3):
            fault = (
                Fault("recorded", 6) if number == who else Fault("recorded", 6, dies=False) if number == other else None
            )
            company.hire(number, fault)
        said = company.group(0, 1, 2)
        assert said[who][0] == "dead"
        company.hire(3)
        order = [3 if number == who else number for number in range(3)]
        assert all(word == "result" for word, _ in company.group(*order).values())
    assert steps_of(tmp_path) == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("every", "row", "order"),
    [(1, 6, (1, 2, 3)), (4, 2, (3, 1, 2)), *(pytest.param(*each, marks=pytest.mark.slow) for each in ROWS)],
)
def test_a_row_that_died_with_its_writer_is_written_all_the_same(tmp_path, every, row, order):
    """Rank 0 has all numbers of a row and dies before it writes them; the others believe that it is done. With local
    steps they are past it when they notice; the rank that is new, which may be the next to write, is not."""
    with Company(tmp_path, *options("sgd"), f"exchange.every={every}", "train.evaluate_every=4") as company:
        for number in range(3):
            company.hire(number, Fault("write", 2 * row) if number == 0 else None)
        said = company.group(0, 1, 2)
        assert {number: word for number, (word, _) in said.items()} == {0: "dead", 1: "lost", 2: "lost"}
        assert steps_of(tmp_path) == [2 * n for n in range(1, row)]
        company.hire(3)
        assert all(word == "result" for word, _ in company.group(*order).values())
    assert steps_of(tmp_path) == [2, 4, 6, 8, 10, 12]


def steps_of(folder):
    return [json.loads(line)["train/step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
