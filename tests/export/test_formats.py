"""What holds for every registered format, and what single ones promise."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import torch
from exported import Two, trained_of, two_layers
from torch import nn

from sparsetrain import registry
from sparsetrain.config.component import NoOptions
from sparsetrain.export import load
from sparsetrain.export.check import compare
from sparsetrain.export.format import WEIGHTS
from sparsetrain.export.formats.compressed import Compressed
from sparsetrain.export.formats.matrices import CSR, edge_of
from sparsetrain.export.formats.onnx import PACKAGES, Onnx
from sparsetrain.export.formats.two_four import TwoFour
from sparsetrain.export.trained import Trained
from sparsetrain.masks.maskset import MaskSet

ROOT = pathlib.Path(registry.__file__).parent
STRUCTURES = {"bsr": "block", "2:4": "n:m", "shrunk": "neuron"}


def dense(model: str) -> Trained:
    """Return a model without masks."""
    trained = trained_of(model, "unstructured")
    return dataclasses.replace(trained, masks=MaskSet({}))


@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt"])
@pytest.mark.parametrize("name", registry.names("format"))
def test_what_fits_is_loaded_back_with_the_same_outputs(name, model, tmp_path):
    cls = registry.load("format", name)
    trained = trained_of(model, STRUCTURES.get(name, "unstructured"))
    each = cls(cls.Config())
    if why := each.unfit(trained):
        assert name == "onnx" and "missing" in why
        pytest.skip(why)
    each.write(trained, tmp_path)
    assert (tmp_path / each.file).is_file()
    assert compare(each.read(trained, tmp_path), trained) <= 1e-5
    assert all(str(ROOT).encode() not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted({*registry.names("format")} - {"safetensors", "onnx"}))
def test_what_does_not_fit_says_why_in_one_line(name):
    cls = registry.load("format", name)
    why = cls(cls.Config()).unfit(dense("mlp"))
    assert why and "\n" not in why


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("model", ["lenet", "gpt"])
def test_a_compressed_file_is_near_the_entropy(model, sparsity, tmp_path):
    trained = trained_of(model, "unstructured", sparsity)
    Compressed(NoOptions()).write(trained, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size <= 1.15 * trained.bound_bytes


def test_the_bound_is_of_values_and_entropy():
    trained = trained_of("mlp", "unstructured", 0.95)
    values = 4 * (sum(trained.masks.counts().values()) + 64 + 32 + 10)
    n = sum(mask.numel() for mask in trained.masks.masks.values())
    d = 1 - trained.masks.sparsity()
    uniform = n * -(d * torch.log2(torch.tensor(d)) + (1 - d) * torch.log2(torch.tensor(1 - d))) / 8
    # ERK spreads the density unevenly, which takes entropy away.
    assert values < trained.bound_bytes < values + float(uniform)


def test_tied_weights_are_written_once(tmp_path):
    trained = trained_of("gpt", "unstructured")
    assert trained.tied == {"head.weight": "embed.weight"}
    Compressed(NoOptions()).write(trained, tmp_path)
    assert "head.weight" not in load.tensors(tmp_path / WEIGHTS)
    assert torch.equal(load.state_dict(tmp_path / WEIGHTS)["head.weight"], trained.model.embed.weight)


def test_what_a_batch_norm_has_seen_is_written_too(tmp_path):
    model = Two(nn.BatchNorm1d(8))
    model(torch.randn(20, 6))
    trained = two_layers(model, [1], [2])
    Compressed(NoOptions()).write(trained, tmp_path)
    found = load.state_dict(tmp_path / WEIGHTS)
    assert {"between.num_batches_tracked", "between.running_var"} <= set(found)
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


def test_linear_layers_multiply_by_what_is_stored_sparse(tmp_path):
    trained = trained_of("gpt", "unstructured")
    CSR(NoOptions()).write(trained, tmp_path)
    model = CSR(NoOptions()).read(trained, tmp_path)
    layer = model.get_submodule("blocks.0.qkv")
    assert isinstance(layer, load.SparseLinear) and layer.weight.layout == torch.sparse_csr
    assert isinstance(trained.model.blocks[0].qkv, torch.nn.Linear)


def test_a_group_of_four_with_fewer_than_two_is_filled_up():
    mask = torch.tensor([[0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0]]).bool()
    parts = TwoFour(NoOptions()).parts(torch.where(mask, torch.arange(1.0, 13.0), 0.0), mask)
    assert parts["values"].tolist() == [[0.0, 4.0, 0.0, 0.0, 9.0, 11.0]]
    assert parts["places"].tolist() == [0 | 3 << 2 | 0 << 4 | 1 << 6, 0 | 2 << 2]
    assert not TwoFour(NoOptions()).packs(torch.ones(4, 4).bool())


@pytest.mark.parametrize(("rows", "columns", "edge"), [(32, 32, 32), (8, 16, 8), (2, 2, 2), (1, 4, 0), (3, 3, 0)])
def test_blocks_are_the_largest_square_ones_that_the_mask_is_made_of(rows, columns, edge):
    coarse = torch.rand(96 // rows, 96 // columns, generator=torch.Generator().manual_seed(3)) < 0.5
    mask = coarse.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    assert edge_of(mask) == edge
    assert edge_of(mask.view(96, -1, 2, 2)) == edge  # of a convolution


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    why = Onnx(NoOptions()).unfit(dense("mlp"))
    assert why == f"the package {PACKAGES[0]} is missing: pip install 'sparsetrain[onnx]'"
