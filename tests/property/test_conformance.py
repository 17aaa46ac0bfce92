"""What every registered component must hold: being registered is being tested."""

import copy
import dataclasses
import inspect
import itertools

import pytest
import torch
from torch import nn

from sparsetrain import registry
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.job import Exchange, Job, Masks
from sparsetrain.config.load import to_tree
from sparsetrain.gradient.exchange import GradientExchange
from sparsetrain.masks.controller import MaskController

ENTRIES = [(kind, name) for kind, table in registry.KINDS.items() for name in table]
SHAPES = {"a": (30, 20), "b": (10, 40), "bias": (30,)}
JOB_FIELD = {"model": "model", "data": "data", "optimizer": "optimizer"}
STEPS = 20


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


EXCHANGES = list(
    itertools.product(
        registry.names("sparsifier"),
        registry.names("error_feedback"),
        registry.names("collective"),
        ("fp32", "bf16"),
        (1, 2, 4),
    )
)


@pytest.mark.parametrize(("sparsifier", "feedback", "collective", "values", "size"), EXCHANGES)
def test_an_exchange_keeps_mass_and_gives_all_ranks_the_same_bits(sparsifier, feedback, collective, values, size):
    options = {"sparsifier": sparsifier, "error_feedback": feedback, "collective": collective, "values": values}
    config = adapter(Exchange).validate_python({"density": 0.07, "dense_below": 50, **options})
    draw = torch.Generator().manual_seed(5)
    active = {name: torch.rand(SHAPES[name], generator=draw) < 0.4 for name in ("a", "b")}

    def body(world: World) -> list[tuple[dict, dict, dict]]:
        exchange = GradientExchange(config, SHAPES, world, 3)
        exchange.set_masks(active, 1)
        generator = torch.Generator().manual_seed(world.rank)
        steps = []
        for _ in range(3):
            gradients = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
            means = exchange.aggregate(gradients)
            kept = {name: residual.clone() for name, residual in exchange.residuals().items()}
            steps.append((gradients, {name: mean.clone() for name, mean in means.items()}, kept))
        return steps

    ranks = Simulation(size).run(body)
    for name, mask in {**active, "bias": torch.ones(30, dtype=torch.bool)}.items():
        given, sent = torch.zeros(SHAPES[name], dtype=torch.float64), torch.zeros(SHAPES[name], dtype=torch.float64)
        for step in range(3):
            mean = ranks[0][step][1][name]
            assert all(torch.equal(mean, rank[step][1][name]) for rank in ranks)
            assert torch.all(mean[~mask] == 0)
            given += sum(torch.where(mask, rank[step][0][name], 0.0).double() for rank in ranks)
            sent += size * mean.double()
            kept = sum(rank[step][2][name].double() for rank in ranks) if name in active else torch.zeros(0)
            if feedback == "none":
                assert not kept.any()
            elif name in active:
                assert torch.allclose(kept + sent[mask], given[mask], atol=1e-5)
    assert torch.allclose(sent, given, atol=1e-4)  # the bias travels dense and keeps nothing back


@pytest.mark.parametrize("distribution", registry.names("distribution"))
@pytest.mark.parametrize("method", registry.names("mask_method"))
def test_a_mask_method_ends_at_the_budget_exactly_and_equally_everywhere(method, distribution):
    config = adapter(Masks).validate_python(
        {"method": method, "distribution": distribution, "sparsity": 0.8, "every": 2}
    )

    replica = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))

    def body(world: World) -> list[str]:
        parameters = dict(copy.deepcopy(replica).named_parameters())
        names = [name for name, p in parameters.items() if p.ndim == 2]
        masks = MaskController(
            config, parameters, maskable=names, seed=3, steps=STEPS, gather=world.transport.gather_bytes
        )
        digests = []
        for step in range(1, STEPS + 1):
            draw = torch.Generator().manual_seed(step)
            scores = {name: torch.randn(parameters[name].shape, generator=draw) for name in names}
            with torch.no_grad():
                for name in names:
                    parameters[name].add_(torch.where(masks.masks.masks[name], scores[name], 0.0), alpha=0.01)
            masks.step(step, lambda scores=scores: scores, None)
            digests.append(masks.masks.digest().hex())
            assert all(torch.all(parameters[n][~masks.masks.masks[n]] == 0) for n in names)
        total = sum(parameters[name].numel() for name in names)
        kept = sum(masks.masks.counts().values())
        assert abs(kept - 0.2 * total) <= len(names)
        return digests

    ranks = Simulation(2).run(body)
    assert ranks[0] == ranks[1]
