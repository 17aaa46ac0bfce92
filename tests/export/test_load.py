"""What load.py makes of files: exactly what was written, or one clear error."""

from __future__ import annotations

import ast
import json
import pathlib

import numpy as np
import pytest
import torch
from exported import trained_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from sparsetrain.config.component import NoOptions
from sparsetrain.export import load
from sparsetrain.export.format import WEIGHTS
from sparsetrain.export.formats.compressed import Compressed
from sparsetrain.export.formats.matrices import BSR, CSR
from sparsetrain.export.formats.two_four import TwoFour
from sparsetrain.kernels import index_code

PACKED = {"compressed": Compressed, "csr": CSR, "bsr": BSR, "2:4": TwoFour}
MASKS = {"compressed": "unstructured", "csr": "unstructured", "bsr": "block", "2:4": "n:m"}


def positions_of(mask: torch.Tensor) -> np.ndarray:
    return Compressed(NoOptions()).parts(torch.zeros(mask.shape), mask)["positions"].numpy()


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 99))
def test_positions_come_back(size, density, seed):
    mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < density
    data = positions_of(mask)
    count = int(mask.sum())
    assert torch.equal(torch.from_numpy(load.positions(data, count, size)), torch.nonzero(mask).flatten())
    assert len(data) == min(load.elias_fano_bytes(count, size), (size + 7) // 8)


@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("size", [1000, 1 << 16, 1 << 26, load.LARGEST])
def test_sparse_masks_are_elias_fano_and_no_bitmap(size, sparsity):
    count = round(size * (1 - sparsity))
    assert load.elias_fano_bytes(count, size) < size / 8
    assert load.elias_fano_bytes(count, size) == index_code.elias_fano_bytes(count, size)


@pytest.mark.parametrize("count", [1, 9, 900])
def test_positions_in_a_large_tensor_come_back(count):
    mask = torch.zeros(1 << 22, dtype=torch.bool)
    mask[torch.randperm(1 << 22, generator=torch.Generator().manual_seed(1))[:count]] = True
    assert load.positions(positions_of(mask), count, 1 << 22).tolist() == torch.nonzero(mask).flatten().tolist()


@given(st.integers(1, 200), st.data())
def test_bytes_are_positions_that_give_the_same_bytes_or_an_error(size, data):
    count = data.draw(st.integers(0, size))
    length = min(load.elias_fano_bytes(count, size), (size + 7) // 8)
    raw = np.frombuffer(data.draw(st.binary(min_size=length, max_size=length)), np.uint8)
    try:
        found = load.positions(raw, count, size)
    except load.BadExport:
        return
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.from_numpy(found)] = True
    assert positions_of(mask).tobytes() == raw.tobytes()


@pytest.mark.parametrize(
    ("raw", "count", "size"),
    [(b"", 1, 8), (b"\1\1", 1, 8), (b"\1", 2, 8), (b"\1", -1, 8), (b"\1", 9, 8), (b"\1", 1, 2**31)],
)
def test_counts_and_lengths_that_do_not_fit_are_refused(raw, count, size):
    with pytest.raises(load.BadExport):
        load.positions(np.frombuffer(raw, np.uint8), count, size)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a written file by layout, and the dense tensors that it holds."""
    found = {}
    for layout, cls in PACKED.items():
        folder = tmp_path_factory.mktemp("layout")
        trained = trained_of("mlp", MASKS[layout])
        cls(NoOptions()).write(trained, folder)
        found[layout] = folder / WEIGHTS, trained.tensors
    return found


@pytest.mark.parametrize("layout", PACKED)
def test_a_file_gives_back_every_bit(files, layout):
    path, wanted = files[layout]
    found = load.state_dict(path)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    sparse = {tensor.layout for tensor in load.tensors(path).values()} - {torch.strided}
    assert sparse == {"csr": {torch.sparse_csr}, "bsr": {torch.sparse_bsr}}.get(layout, set())


@pytest.mark.parametrize("layout", PACKED)
@settings(max_examples=150)
@given(st.data())
def test_a_damaged_file_is_one_clear_error_or_another_model(files, layout, data):
    path, _ = files[layout]
    raw = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        end = header if data.draw(st.booleans()) else len(raw)
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    damaged = path.with_name("damaged")
    damaged.write_bytes(raw)
    try:
        found = load.state_dict(damaged)
    except load.BadExport as error:
        assert "\n" not in str(error) and str(damaged) in str(error)
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def retold(path: pathlib.Path, change, tensors=None) -> pathlib.Path:
    """Write the file anew with other metadata, and other tensors in place of some."""
    with safe_open(path, "pt") as file:
        told, stored = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(told)
    other = path.with_name("retold")
    save_file({**stored, **(tensors or {})}, other, told)
    return other


def entries(told: dict[str, str], change) -> None:
    groups = json.loads(told["tensors"])
    change(groups["float32"])
    told["tensors"] = json.dumps(groups)


WRONG = {
    "version": (lambda told: told.update(version="2"), "is no export of layout .*, version 1"),
    "layout": (lambda told: told.update(layout="zip"), "is no export of layout"),
    "no table": (lambda told: told.pop("tensors"), "KeyError"),
    "a list": (lambda told: told.update(tensors="[]"), "AttributeError"),
    "tied to nothing": (lambda told: told.update(tied='{"a": "b"}'), "tied to b, which is not there"),
    "a shape": (lambda told: entries(told, lambda rows: rows[0].__setitem__(1, [-1, 2])), r"\[-1, 2\] is no shape"),
    "a huge shape": (lambda told: entries(told, lambda rows: rows[0].__setitem__(1, [1 << 40])), "is no shape"),
    "a count": (lambda told: entries(told, lambda rows: rows[0].__setitem__(2, 10**9)), "1000000000 values of "),
    "a float": (lambda told: entries(told, lambda rows: rows[0].__setitem__(2, 0.5)), "0.5 values of"),
    "twice": (lambda told: entries(told, lambda rows: rows.append(rows[-1])), "is there twice"),
    "one word more": (lambda told: entries(told, lambda rows: rows[0].append(1)), "says more than its shape"),
    "one less": (lambda told: entries(told, lambda rows: rows.pop()), "values of float32 are left"),
    "another kind": (lambda told: told.update(tensors='{"int8": []}'), "KeyError"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_table_that_does_not_fit_is_refused(files, kind):
    change, words = WRONG[kind]
    with pytest.raises(load.BadExport, match=words):
        load.state_dict(retold(files["compressed"][0], change))


@pytest.mark.parametrize("layout", ["csr", "bsr"])
def test_rows_and_columns_that_do_not_fit_are_refused(files, layout):
    path, _ = files[layout]
    stored = load.tensors(path)["layers.0.weight"]
    row, col = stored.crow_indices(), stored.col_indices()
    for name, tensor in (("crow", row.flip(0)), ("col", col + 5000), ("col", col.flip(0)), ("crow", row[1:])):
        wrong = {f"layers.0.weight.{name}": tensor.contiguous()}
        with pytest.raises(load.BadExport, match=r"layers\.0\.weight"):
            load.state_dict(retold(path, lambda told: None, wrong))


def test_places_of_four_that_do_not_ascend_are_refused(files):
    path, _ = files["2:4"]
    with safe_open(path, "pt") as file:
        places = file.get_tensor("layers.0.weight.places")
    for wrong in (torch.zeros_like(places), places[1:], places.int()):
        with pytest.raises(load.BadExport, match=r"layers\.0\.weight: places"):
            load.state_dict(retold(path, lambda told: None, {"layers.0.weight.places": wrong.clone()}))


def test_what_is_no_file_is_an_error(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(load.BadExport):
            load.state_dict(path)


def test_a_tensor_without_active_weights_comes_back(tmp_path):
    trained = trained_of("mlp", "unstructured")
    name = next(iter(trained.masks.masks))
    trained.masks.masks[name].zero_()
    trained.tensors[name].zero_()
    for layout, cls in (("compressed", Compressed), ("csr", CSR)):
        (tmp_path / layout).mkdir()
        cls(NoOptions()).write(trained, tmp_path / layout)
        assert not load.state_dict(tmp_path / layout / WEIGHTS)[name].any()


def test_the_loader_needs_nothing_of_ours():
    tree = ast.parse(pathlib.Path(load.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("sparsetrain") for name in names)


def test_a_small_file_stands_for_no_ocean_of_weights(tmp_path):
    empty = {"values.float32": torch.zeros(0), "positions": torch.zeros(0, dtype=torch.uint8)}
    told = {"format": "sparsetrain", "layout": "compressed", "version": load.VERSION, "tied": "{}"}
    groups = {"float32": [[f"w{n}", [1 << 28], 0] for n in range(3)]}
    save_file(empty, tmp_path / "m", {**told, "tensors": json.dumps(groups)})
    with pytest.raises(load.BadExport, match="w0: more weights than a file of its size stands for"):
        load.tensors(tmp_path / "m")
    save_file({}, tmp_path / "m", {**told, "layout": "csr", "shapes": json.dumps({"w": [1 << 15, 1 << 15]})})
    with pytest.raises(load.BadExport, match="weights in a file of its size"):
        load.state_dict(tmp_path / "m")
