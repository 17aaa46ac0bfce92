import pytest
import torch
from torch import nn

from sparsetrain.compute.choice import Chooser
from sparsetrain.compute.geometry import LinearGeometry
from sparsetrain.compute.layers import layers_of
from sparsetrain.compute.ways.sparse import Sparse


def layer_of(mask: torch.Tensor, seen: bool = True):
    module = nn.Linear(mask.shape[1], mask.shape[0])
    (layer,) = layers_of(module, ["weight"])[0].values()
    if seen:
        module(torch.randn(8, mask.shape[1]))
    layer.adopt(mask)
    return layer


class Clock:
    """Every pass of a way takes the time that is said for it."""

    def __init__(self, monkeypatch, **seconds: float):
        self.now = 0.0
        for way, name in ((LinearGeometry, "masked"), (Sparse, "sparse")):
            monkeypatch.setattr(way, "forward", self.slow(way.forward, seconds[name]))

    def slow(self, forward, seconds):
        def slowed(*arguments):
            self.now += seconds
            return forward(*arguments)

        return slowed

    def __call__(self) -> float:
        return self.now


SOME = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.3


@pytest.mark.parametrize(
    ("masked", "sparse", "chosen"),
    [(2.0, 1.0, "sparse"), (1.0, 2.0, "masked"), (1.0, 0.86, "masked"), (1.0, 0.84, "sparse")],
)
def test_the_fastest_is_taken_and_the_dense_product_where_little_is_won(monkeypatch, masked, sparse, chosen):
    monkeypatch.setattr(Sparse, "refuses", classmethod(lambda *_: ""))
    clock = Clock(monkeypatch, masked=masked, sparse=sparse)
    timed = Chooser("auto", clock).choose(layer_of(SOME))
    assert timed.chosen == chosen and timed.seconds == pytest.approx({"masked": masked, "sparse": sparse})
    assert f"masked {masked * 1e3:.2f} ms, sparse {sparse * 1e3:.2f} ms" in timed.why


def test_a_density_is_measured_once(monkeypatch):
    monkeypatch.setattr(Sparse, "refuses", classmethod(lambda *_: ""))
    clock = Clock(monkeypatch, masked=1.0, sparse=0.5)
    chooser = Chooser("auto", clock)
    first = chooser.choose(layer_of(SOME))
    after = clock.now
    assert chooser.choose(layer_of(SOME.roll(1, 1))) is first and clock.now == after
    chooser.choose(layer_of(SOME & SOME.roll(1, 1)))
    assert clock.now > after


def test_measuring_draws_nothing_from_the_run(monkeypatch):
    monkeypatch.setattr(Sparse, "refuses", classmethod(lambda *_: ""))
    layer = layer_of(SOME)
    before = torch.get_rng_state()
    Chooser().choose(layer)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_name_is_obeyed_where_it_fits_and_else_said_why():
    assert Chooser("masked").choose(layer_of(SOME)).why == "as the job says"
    timed = Chooser("smaller").choose(layer_of(SOME))
    assert timed.chosen == "masked" and timed.why == "its mask does not leave whole outputs and inputs"
    square = torch.zeros(16, 16, dtype=torch.bool)
    square[:4, 8:] = True
    assert Chooser("smaller").choose(layer_of(square)).chosen == "smaller"


def test_nothing_is_measured_without_an_input_or_a_choice(monkeypatch):
    monkeypatch.setattr(Sparse, "refuses", classmethod(lambda *_: ""))
    timed = Chooser().choose(layer_of(SOME, seen=False))
    assert (timed.chosen, timed.why) == ("masked", "no input has been seen")
    monkeypatch.setattr(Sparse, "refuses", classmethod(lambda *_: "not here"))
    timed = Chooser().choose(layer_of(SOME))
    assert timed.chosen == "masked" and "sparse: not here" in timed.why
