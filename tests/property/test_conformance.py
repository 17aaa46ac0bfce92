"""What every registered component must hold: being registered is being tested."""

import dataclasses
import inspect
import itertools
import typing

import pytest
import torch
from mpi_ranks import missing, mpi_ranks
from ranks import gloo_ranks
from torch import nn
from under_way import under_way

from sparsetrain import registry
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.check import check_exchange
from sparsetrain.config.component import adapter
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Exchange, Job, RegimeName
from sparsetrain.config.load import to_tree
from sparsetrain.gradient.exchange import GradientExchange

ENTRIES = [(kind, name) for kind, table in registry.KINDS.items() for name in table]
SHAPES = {"a": (30, 20), "b": (10, 40), "bias": (30,)}
JOB_FIELD = {"model": "model", "data": "data", "optimizer": "optimizer"}


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_an_entry_has_a_frozen_config_with_defaults_and_says_what_it_is(kind, name):
    cls = registry.load(kind, name)
    assert len(registry.summary(kind, name)) > 20
    assert dataclasses.is_dataclass(cls.Config) and cls.Config.__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls.Config().anything = 1
    assert all(
        parameter.kind is parameter.KEYWORD_ONLY for parameter in inspect.signature(cls.Config).parameters.values()
    )


@pytest.mark.parametrize(("kind", "name"), [entry for entry in ENTRIES if entry[0] in JOB_FIELD])
def test_a_job_names_it_and_reads_back(kind, name):
    job = adapter(Job).validate_python({"name": "x", JOB_FIELD[kind]: name})
    assert adapter(Job).validate_python(to_tree(job)) == job


@pytest.mark.parametrize("name", registry.names("model"))
def test_a_model_learns_on_its_data_and_names_what_may_be_masked(name):
    torch.manual_seed(0)
    model = registry.load("model", name)(registry.load("model", name).Config())
    batch = (
        (torch.randint(256, (4, 16)), torch.randint(256, (4, 16)))
        if name == "gpt"
        else (torch.randn(4, 1, 28, 28), torch.randint(10, (4,)))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    parameters = dict(model.named_parameters())
    assert model.maskable() and all(parameters[each].ndim >= 2 for each in model.maskable())


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_an_optimizer_takes_every_parameter_once(name):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    cls = registry.load("optimizer", name)
    groups = cls(cls.Config(weight_decay=0.5)).optimizer(model).param_groups
    taken = [id(p) for group in groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())
    assert all(group["weight_decay"] == 0 for group in groups if any(p.ndim < 2 for p in group["params"]))


KINDS = ("sparsifier", "error_feedback", "collective", "index_code", "value_code")
FIELDS = ("sparsifier", "error_feedback", "collective", "indices", "values")


def exchange_config(combination: tuple[str, ...], **options) -> Exchange:
    given = dict(zip(FIELDS, combination, strict=True)) | options
    return adapter(Exchange).validate_python({"density": 0.07, "dense_below": 50, **given})


def makes_sense(combination: tuple[str, ...]) -> bool:
    try:
        check_exchange(exchange_config(combination))
    except JobError:
        return False
    return True


PRODUCT = list(itertools.product(*(registry.names(kind) for kind in KINDS)))
ALLOWED = [combination for combination in PRODUCT if makes_sense(combination)]
# One test per pair of selection and collective runs all codecs: thousands of tests of milliseconds cost seconds each.
GROUPS = sorted({combination[:3] for combination in ALLOWED})


def run_exchange(world: World, config: Exchange, active: dict, steps: int) -> list[tuple[dict, dict, dict]]:
    """Return per step what went in, the mean, and the state that the rank kept."""
    exchange = under_way(config, SHAPES, world, steps)
    exchange.set_masks(active, 1)
    generator = torch.Generator().manual_seed(world.rank)
    history = []
    for _ in range(steps):
        gradients = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        means = exchange.aggregate(gradients)
        assert means is not None
        history.append((gradients, {name: mean.clone() for name, mean in means.items()}, exchange.state()))
    exchange.close()
    return history


def draw_masks() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return {name: torch.rand(SHAPES[name], generator=draw) < 0.4 for name in ("a", "b")}


def check_invariants(ranks: list, feedback: str, active: dict) -> None:
    """All ranks hold the same bits, nothing lives outside the masks, and each feedback keeps its own invariant."""
    size = len(ranks)
    for name, mask in active.items():
        given = torch.zeros(int(mask.sum()), dtype=torch.float64)
        sent, momenta = given.clone(), [given.clone() for _ in ranks]
        for step in range(len(ranks[0])):
            mean = ranks[0][step][1][name]
            assert all(torch.equal(mean, rank[step][1][name]) for rank in ranks)
            assert torch.all(mean[~mask] == 0)
            states = [rank[step][2] for rank in ranks]
            inputs = [rank[step][0][name][mask].double() for rank in ranks]
            if feedback == "dgc":  # what is sent is velocity: u = m u + g, cleared where it arrived
                momenta = [0.9 * old + g for old, g in zip(momenta, inputs, strict=True)]
                given += sum(momenta)
                momenta = [state[f"momentum/{name}"].double() for state in states]
            else:
                given += sum(inputs)
            sent += size * mean[mask].double()
            if feedback in ("ef14", "dgc"):
                kept = sum(state[f"residual/{name}"].double() for state in states)
                assert torch.allclose(kept + sent, given, atol=2e-5)
            elif feedback == "none":
                assert not any(key.startswith("residual") for key in states[0])
            else:
                local = sum(state[f"local/{name}"].double() for state in states) / size
                assert torch.allclose(local, states[0][f"estimate/{name}"].double(), atol=1e-5)
                assert torch.equal(states[0][f"estimate/{name}"], mean[mask])


@pytest.mark.parametrize("group", GROUPS, ids="-".join)
def test_an_exchange_keeps_its_invariant_and_gives_all_ranks_the_same_bits(group):
    active = draw_masks()
    for combination in ALLOWED:
        if combination[:3] != group:
            continue
        config = exchange_config(combination, overlap=False)
        for size in (1, 3):
            ranks = Simulation(size).run(lambda world, config=config: run_exchange(world, config, active, 2))
            check_invariants(ranks, config.error_feedback.name, active)


REGIMES = [each for each in typing.get_args(RegimeName) if each != "sparse"]


def whole(regime: str, feedback: str, values: str, **options) -> Exchange:
    """Return a configuration whose regime chooses no places; factors of rank 1 are worth it for both tensors."""
    return exchange_config(("topk", feedback, "allgather", "auto", values), regime=regime, rank=1, **options)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_regime_keeps_the_invariant_of_every_feedback_that_it_takes(regime):
    active, taken = draw_masks(), []
    for feedback, values in itertools.product(registry.names("error_feedback"), registry.names("value_code")):
        config = whole(regime, feedback, values, overlap=False)
        try:
            check_exchange(config)
        except JobError:
            with pytest.raises(JobError, match=r"^exchange\.\w+: .*allowed: "):
                GradientExchange(config, SHAPES, World(), 1)
            continue
        taken.append(feedback)
        for size in (1, 3):
            ranks = Simulation(size).run(lambda world, config=config: run_exchange(world, config, active, 3))
            check_invariants(ranks, feedback, active)
    assert {"ef14", "none"} <= set(taken)


def test_combinations_that_make_no_sense_are_refused_with_the_reason():
    refused = [combination for combination in PRODUCT if combination not in set(ALLOWED)]
    assert refused
    for combination in refused:
        with pytest.raises(JobError, match=r"^exchange\.\w+: .*(allowed: |say )"):
            GradientExchange(exchange_config(combination), SHAPES, World(), 1)


def pairwise() -> list[tuple[str, ...]]:
    """Return combinations that hold every allowed pair of names at least once (greedy)."""

    def pairs(combination):
        return {(i, j, combination[i], combination[j]) for i in range(5) for j in range(i)}

    missing, chosen = set().union(*map(pairs, ALLOWED)), []
    while missing:
        best = max(ALLOWED, key=lambda combination: len(pairs(combination) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def configs() -> list[Exchange]:
    return [
        *(exchange_config(each, overlap=n % 2 == 0) for n, each in enumerate(pairwise())),
        *(whole(regime, "ef14", "fp32", overlap=overlap) for regime in REGIMES for overlap in (True, False)),
    ]


def run_all(world: World) -> list:
    return [run_exchange(world, each, draw_masks(), 2) for each in configs()]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "ranks_of",
    [gloo_ranks, pytest.param(mpi_ranks, marks=pytest.mark.skipif(bool(missing()), reason=missing()))],
    ids=["gloo", "mpi"],
)
def test_real_ranks_give_the_bits_of_the_simulated_world(ranks_of):
    real = ranks_of(2, run_all)
    simulated = Simulation(2).run(run_all)
    for n, config in enumerate(configs()):
        check_invariants([rank[n] for rank in real], config.error_feedback.name, draw_masks())
        for rank in range(2):
            for (_, mean, kept), (_, expected, state) in zip(real[rank][n], simulated[rank][n], strict=True):
                assert all(torch.equal(mean[name], expected[name]) for name in expected), config
                assert all(torch.equal(kept[key], state[key]) for key in state), config
