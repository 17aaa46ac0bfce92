"""What every allowed combination of method, structure and distribution must hold, on any number of ranks."""

import copy
import functools
import itertools

import pytest
import torch
from torch import nn

from sparsetrain import registry
from sparsetrain.collective.simulated import Simulation
from sparsetrain.collective.world import World
from sparsetrain.config.component import adapter
from sparsetrain.config.coupling import Coupling, Slice
from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Masks
from sparsetrain.masks.controller import MaskController

OPTIONS = {"block": {"rows": 4, "columns": 4}, "tiles": {"name": "n:m", "transposable": True}}
VARIANTS = {"synflow": {"iterations": 10}, "soft mest": {"name": "mest", "soft": True}}
METHODS = sorted({*registry.names("mask_method"), *VARIANTS})
STRUCTURES = sorted({*registry.names("structure"), *OPTIONS})
PRODUCT = list(itertools.product(METHODS, STRUCTURES, registry.names("distribution")))
# Averages that are binary fractions, so that the mean over ranks is exact; a threshold among these weights.
METHOD_OPTIONS = {
    "snfs": {"momentum": 0.5},
    "dsr": {"threshold": 1.0},
    "deepr": {"penalty": 0.25, "noise": 0.5},
    "str": {"initial": -1.0},
    "l0": {"rate": 1.0},
}
MOVING = ("snfs", "dsr")  # the budget moves between tensors; only its sum is exact
STEPS, EVERY = 12, 3
# Two couplings hold each of the matrices; a head's rows are two runs that lie apart.
COUPLINGS = [
    Coupling(name="into b", kind="neuron", units=16, makes=(Slice("a"), Slice("bias")), reads=(Slice("b", axis=1),)),
    Coupling(name="into a", kind="neuron", units=24, makes=(Slice("b"),), reads=(Slice("a", axis=1),)),
    Coupling(
        name="heads",
        kind="head",
        units=8,
        makes=(Slice("a", parts=2), Slice("bias", parts=2)),
        reads=(Slice("b", axis=1),),
    ),
]


def method_of(name: str) -> dict:
    """Return what a job says of a method, or of a variant of one, by its name here."""
    return {"name": name, **METHOD_OPTIONS.get(name, {}), **VARIANTS.get(name, {})}


def structure_of(name: str) -> dict:
    """Return what a job says of a structure, or of a variant of one, by its name here."""
    return {"name": name, **OPTIONS.get(name, {})}


class Replica:
    """One rank's weights, optimizer and masks, driven by made-up gradients that are whole numbers."""

    def __init__(self, combination: tuple[str, ...], world: World, kind: str, **settings) -> None:
        method, structure, distribution, *regulariser = combination
        tree = {
            "method": method_of(method),
            "structure": structure_of(structure),
            "distribution": distribution,
            "sparsity": 0.5 if structure in ("n:m", "tiles") else 0.75,
            "every": EVERY,
            "end": 1.0,
            "regulariser": {"name": regulariser[0], "strength": 0.5} if regulariser else None,
            **settings,
        }
        draw = torch.Generator().manual_seed(1)
        shapes = {"a": (16, 24), "b": (24, 16), "bias": (16,)}
        self.parameters = {
            name: nn.Parameter(torch.randint(-64, 65, shape, generator=draw) / 8) for name, shape in shapes.items()
        }
        self.world = world
        self.masks = MaskController(
            adapter(Masks).validate_python(tree),
            self.parameters,
            maskable=["a", "b"],
            couplings=COUPLINGS,
            seed=3,
            steps=STEPS,
            gather=world.transport.gather_bytes,
            mean=lambda tensors: world.transport.mean(tensors, "mask"),
            fresh=False,  # a rescaled weight is no whole number of eighths
        )
        if self.masks.waits:
            self.masks.initialise(self)
        values = list(self.parameters.values())
        self.optimizer = (
            torch.optim.SGD(values, lr=0.125)
            if kind == "sgd"
            else torch.optim.AdamW(values, lr=0.01, weight_decay=0.1)
            if kind == "adamw"
            else torch.optim.SGD(values, lr=0.125, momentum=0.9)
        )
        self.masks.join(self.optimizer)
        self.parameters = {**self.parameters, **self.masks.learned}

    def local(self, step: int) -> dict[str, torch.Tensor]:
        """Return this rank's gradients; their mean is the same for every number of ranks."""
        draw, offset = torch.Generator().manual_seed(step), 2 * self.world.rank - (self.world.size - 1)
        return {
            name: torch.randint(-8, 9, parameter.shape, generator=draw).float() + offset
            for name, parameter in self.parameters.items()
        }

    def gradient(self, batches: int) -> dict[str, torch.Tensor]:
        """Answer as a probe."""
        return self.world.transport.mean(self.local(0), "mask")

    hessian_gradient = gradient

    def flow(self) -> dict[str, torch.Tensor]:
        """Answer as a probe: what has been pruned lets nothing through."""
        return {name: parameter.detach().double().abs() for name, parameter in self.parameters.items()}

    def mean(self, local: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the mean gradients."""
        return self.world.transport.mean(local, "gradient")

    def step(self, step: int) -> None:
        """Take the step that makes `step` finished ones, and check what must hold after each."""
        local = self.local(step)
        self.masks.observe(step, local)
        for name, mean in self.mean(local).items():
            self.parameters[name].grad = mean
        for name, update in self.masks.limits.items():
            self.parameters[name].grad[~update] = float("nan")  # whatever an inactive weight's gradient is
        self.masks.mask_gradients()
        self.masks.pull(step)
        self.optimizer.step()
        self.masks.mask_weights()
        report = self.masks.step(step, self.optimizer)
        if report is not None and report.rewound:
            self.forget()
        self.check(report)

    def forget(self) -> None:
        """Let go of what an exchange keeps, after a rewind: nothing here."""

    def check(self, report: object) -> None:
        """Nothing lives outside the update sets, the forward sets lie inside them, and counts are exact."""
        found = self.masks.masks
        for name, mask in found.masks.items():
            update, weight = found.update(name), self.parameters[name]
            assert torch.isfinite(weight).all() and torch.all(weight[~update] == 0)
            assert torch.all(update[mask])
            for field, value in self.optimizer.state[weight].items():
                if torch.is_tensor(value) and value.shape == weight.shape:
                    assert torch.all(value[~update] == 0), field
        view = self.masks.chooser.view
        chosen = view.masks(found.masks)
        assert all(torch.equal(mask, found.masks[name]) for name, mask in view.scatter(chosen).items())
        for name, mask in chosen.items():
            layout = view.layouts[name]
            assert torch.equal(layout.expand(layout.active(mask)), mask)
        kept = {name: self.parameters[name].detach().clone() for name in found.masks}
        with self.masks.forward():
            for name, mask in found.masks.items():
                used = self.parameters[name]
                if self.masks.learns and report is not None:
                    assert torch.equal(used != 0, mask & (kept[name] != 0))
                assert self.masks.learns or torch.all(used[~mask] == 0)
        assert all(torch.equal(self.parameters[name], weight) for name, weight in kept.items())
        if report is not None and self.masks.learned and not self.masks.learns:
            total = sum(mask.numel() for mask in found.masks.values())
            assert sum(found.counts().values()) == round((1.0 - self.masks.config.sparsity) * total)
        if report is not None and self.masks.config.method.name in MOVING:
            wanted = self.masks.chooser.counts(report.target_sparsity, {})
            assert sum(found.counts().values()) == sum(wanted.values())
        elif report is not None and self.masks.config.distribution.name != "global":
            for name, count in self.masks.chooser.counts(report.target_sparsity, {}).items():
                # Neurons that are left cannot always share the budget of the ablated ones without a remainder.
                unspent = self.masks.chooser.layouts[name].groups if self.masks.config.method.name == "srigl" else 1
                assert 0 <= count - int(chosen[name].sum()) < unspent

    def state(self) -> dict:
        """Everything that a checkpoint holds."""
        saved = {
            "weights": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "masks": self.masks.state_dict(),
            "rank": self.masks.rank_state(),
        }
        return copy.deepcopy(saved)

    def load(self, state: dict) -> None:
        state = copy.deepcopy(state)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.masks.load_state_dict(state["masks"])
        self.masks.load_rank_state(state["rank"])

    def result(self) -> tuple[str, dict]:
        weights = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        return self.masks.masks.digest().hex(), weights


def build(combination: tuple[str, ...], world: World, kind: str) -> Replica | None:
    """Return a replica, or None where the combination is refused; it must say why."""
    try:
        return Replica(combination, world, kind)
    except JobError as error:
        assert str(error).startswith("masks.") and "allowed: " in str(error)
        return None


def train(combination: tuple[str, ...], world: World, kind: str) -> list[tuple[str, dict]]:
    replica = build(combination, world, kind)
    assert replica is not None
    history = []
    for step in range(1, STEPS + 1):
        replica.step(step)
        history.append(replica.result())
    return history


def same(one: tuple[str, dict], other: tuple[str, dict]) -> bool:
    return one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


REGULARISED = [
    (method, structure, "uniform", name)
    for name in registry.names("regulariser")
    for method, structure in (("gmp", "row"), ("topkast", "block"), ("rigl", "unstructured"), ("set", "neuron"))
    if (name, structure) != ("group_lasso", "unstructured")
]


@functools.cache  # what is asked once here is not asked again by each rank that imports this
def allowed() -> list[tuple[str, ...]]:
    return [combination for combination in PRODUCT if build(combination, World(), "sgd")]


def of(method: str) -> list[tuple[str, ...]]:
    return [combination for combination in [*allowed(), *REGULARISED] if combination[0] == method]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_sense_with_some_structure_and_distribution(method):
    assert of(method)


QUICK = ("static", "rigl", "topkast", "l0")  # one of each way to come to masks; the others come last


@pytest.mark.parametrize("method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_one_two_and_four_ranks_give_the_same_masks_and_weights(method):
    for combination in of(method):
        (alone,) = Simulation(1).run(lambda world, c=combination: train(c, world, "sgd"))
        for size in (2, 4):
            for history in Simulation(size).run(lambda world, c=combination: train(c, world, "sgd")):
                assert all(same(one, other) for one, other in zip(history, alone, strict=True)), combination


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["adamw", "momentum"])
def test_resume_at_an_update_and_one_step_on_either_side_is_bit_exact(method, kind):
    for combination in of(method):
        straight = build(combination, World(), kind)
        saved = {}
        for step in range(1, STEPS + 1):
            straight.step(step)
            saved[step] = straight.state()
        updates = [step for step in range(1, STEPS) if straight.masks.is_update(step)]
        at = updates[len(updates) // 2] if updates else 6
        stops = {max(1, at - 1), at, at + 1}
        stops |= {updates[-1] + each for each in (-1, 0, 1)} if straight.masks.learned else set()
        for stop in stops:
            resumed = build(combination, World(), kind)
            resumed.load(saved[stop])
            for step in range(stop + 1, STEPS + 1):
                resumed.step(step)
            assert same(resumed.result(), straight.result()), (combination, stop)
            assert str(resumed.state()["rank"]) == str(straight.state()["rank"])
