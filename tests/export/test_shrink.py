"""What is taken out of a model leaves its outputs as they are."""

from __future__ import annotations

import json
import pathlib
import zipfile

import pytest
import torch
from exported import Two, trained_of, two_layers
from torch import nn

from sparsetrain import registry
from sparsetrain.config.component import NoOptions
from sparsetrain.config.coupling import Slice
from sparsetrain.export.format import WEIGHTS, Unfit
from sparsetrain.export.formats.shrunk import CONFIG, Shrunk
from sparsetrain.export.program import PROGRAM
from sparsetrain.export.shrink import kept_units, without

ROOT = pathlib.Path(registry.__file__).parent


def test_what_nothing_comes_into_or_goes_out_of_is_taken_out(tmp_path):
    what = two_layers(Two(nn.ReLU()), out_rows=[1, 2], out_columns=[2, 5])
    shrunk = Shrunk(NoOptions())
    assert shrunk.unfit(what) == ""
    shrunk.write(what, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["units"] == {"hidden": {"before": 8, "now": 5}}
    small = shrunk.read(what, tmp_path)
    assert torch.allclose(small(what.inputs), what.outputs, atol=1e-6)
    assert small(torch.randn(9, 6)).shape == (9, 3)


def test_what_comes_out_of_nothing_stays_where_it_is_not_zero(tmp_path):
    # Sigmoid of 0 is 1/2: that neuron is a constant, not nothing.
    what = two_layers(Two(nn.Sigmoid()), out_rows=[1], out_columns=[5])
    Shrunk(NoOptions()).write(what, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["units"]["hidden"]["now"] == 7


def test_a_bias_that_is_not_zero_keeps_its_neuron():
    what = two_layers(Two(nn.ReLU()), out_rows=[1], out_columns=[])
    assert len(kept_units(what, what.model.couplings(), silent=True)["hidden"]) == 7
    with torch.no_grad():
        what.model.first.bias[1] = 0.5
    what = two_layers(what.model, out_rows=[], out_columns=[])
    what.masks.masks["first.weight"][1] = False
    assert len(kept_units(what, what.model.couplings(), silent=True)["hidden"]) == 8


def test_an_active_weight_that_happens_to_be_zero_is_no_mask():
    what = two_layers(Two(nn.ReLU()), out_rows=[], out_columns=[])
    with torch.no_grad():
        what.model.last.weight[:, 3] = 0.0
    assert len(kept_units(what, what.model.couplings(), silent=False)["hidden"]) == 8


def test_one_unit_always_stays():
    what = two_layers(Two(nn.ReLU()), out_rows=list(range(8)), out_columns=list(range(8)))
    assert kept_units(what, what.model.couplings(), silent=True)["hidden"].tolist() == [0]


def test_what_a_batch_norm_has_seen_goes_along(tmp_path):
    model = Two(nn.BatchNorm1d(8), (Slice("between.weight"), Slice("between.bias")))
    with torch.no_grad():
        model.between.running_mean.normal_()
        model.between.running_var.uniform_(0.5, 2.0)
        model.between.bias.normal_()
    what = two_layers(model, out_rows=[], out_columns=[0, 4])
    Shrunk(NoOptions()).write(what, tmp_path)
    small = without(model, model.couplings(), kept_units(what, model.couplings(), silent=False))
    assert small.get_buffer("between.running_mean").shape == (6,)
    assert torch.allclose(small(what.inputs), what.outputs, atol=1e-6)


def test_a_norm_over_the_units_is_refused_with_a_reason(tmp_path):
    model = Two(nn.LayerNorm(8), (Slice("between.weight"), Slice("between.bias")))
    what = two_layers(model, out_rows=[], out_columns=[0, 4])
    with pytest.raises(Unfit, match="counts on the number of its units"):
        Shrunk(NoOptions()).write(what, tmp_path)


def test_units_that_served_only_those_that_went_go_too():
    what = trained_of("mlp", "unstructured", 0.5)
    masks = what.masks.masks
    masks["layers.2.weight"][:, 7] = False  # nothing takes neuron 7 of the second layer in
    masks["layers.1.weight"][:, 3] = False
    masks["layers.1.weight"][7, 3] = True  # and neuron 3 of the first served it alone
    kept = kept_units(what, what.model.couplings(), silent=False)
    assert 7 not in kept["layers.1"] and 3 not in kept["layers.0"]


@pytest.mark.parametrize(
    ("model", "structure"), [("mlp", "neuron"), ("cnn", "neuron"), ("gpt", "head"), ("gpt", "neuron")]
)
def test_masked_units_are_not_there_and_nothing_is_pickled(model, structure, tmp_path):
    what = trained_of(model, structure, 0.5)
    Shrunk(NoOptions()).write(what, tmp_path)
    told = json.loads((tmp_path / CONFIG).read_text())
    kind = {each.name for each in what.model.couplings() if each.kind == structure}
    assert all(told["units"][name]["now"] == told["units"][name]["before"] // 2 for name in kind)
    assert ("config" in told) == (model != "gpt")
    assert (tmp_path / WEIGHTS).stat().st_size < what.dense_bytes
    with zipfile.ZipFile(tmp_path / PROGRAM) as archive:
        pickles = [info for info in archive.infolist() if info.filename.endswith((".pt", ".pkl")) and info.file_size]
        text = b"".join(archive.read(info) for info in archive.infolist())
    assert pickles == [] and str(ROOT).encode() not in text


def test_a_network_whose_config_cannot_say_its_widths_is_a_program(tmp_path):
    what = trained_of("cnn", "neuron", 0.5)
    with torch.no_grad():
        unit = torch.nonzero(what.masks.masks["second.bias"])[0]
        for name, mask in what.masks.masks.items():
            if name.startswith("second"):
                mask[unit] = False
                what.tensors[name][unit] = 0.0
    object.__setattr__(what, "outputs", what.model(what.inputs).detach())
    Shrunk(NoOptions()).write(what, tmp_path)
    assert "config" not in json.loads((tmp_path / CONFIG).read_text())
    assert torch.allclose(Shrunk(NoOptions()).read(what, tmp_path)(what.inputs), what.outputs, atol=1e-6)
