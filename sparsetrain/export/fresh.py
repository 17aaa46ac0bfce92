"""Loads exports where sparsetrain cannot be imported, and says how far their outputs are from the run's.

Started as `python -P -B fresh.py PROBE FOLDER...`. PROBE holds probe.safetensors (input, output, and under state/ the
dense tensors) and, where torch.export could write it, the model's program.pt2. One JSON mapping goes to standard
output, by folder: `how` it was loaded, `same` (its tensors are the run's bit for bit; null: they are not meant to be),
`difference` of the outputs (null: no program to compute them with), or `error`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

TOLERANCE = 1e-5
ONNX, PROGRAM, WEIGHTS, LOADER, PROBE = "model.onnx", "program.pt2", "model.safetensors", "load.py", "probe.safetensors"
STATE = "state/"


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of two outputs, relative to the largest wanted one where that is above 1."""
    if found.shape != wanted.shape:
        return math.inf
    largest = max(1.0, float(wanted.abs().max()))
    return float((found.double() - wanted.double()).abs().max()) / largest


def onnx_session(path: pathlib.Path) -> Callable[[Tensor], Tensor]:
    """Return what an ONNX file makes of inputs, by onnxruntime on a CPU with as many threads as torch has."""
    onnxruntime: Any = importlib.import_module("onnxruntime")  # not there for most
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


def look(folder: pathlib.Path, probe: pathlib.Path) -> dict[str, Any]:
    """Return how one export is loaded, and what it computes."""
    told = load_file(probe / PROBE)
    inputs, wanted = told["input"], told["output"]
    if (folder / ONNX).is_file():
        found = onnx_session(folder / ONNX)(inputs)
        return {"how": "onnxruntime", "same": None, "difference": difference(found, wanted)}
    if (folder / PROGRAM).is_file():
        found = _program(folder)(inputs)
        return {"how": "torch.export.load", "same": None, "difference": difference(found, wanted)}
    how, state = ("load.py", _loaded(folder)) if (folder / LOADER).is_file() else ("safetensors", _plain(folder))
    kept = {key.removeprefix(STATE): tensor for key, tensor in told.items() if key.startswith(STATE)}
    same = set(kept) <= set(state) and all(torch.equal(tensor, state[name]) for name, tensor in kept.items())
    apart = None
    if (probe / PROGRAM).is_file():
        model = _program(probe)
        model.load_state_dict(state)
        apart = difference(model(inputs), wanted)
    return {"how": how, "same": same, "difference": apart}


def _program(folder: pathlib.Path) -> Any:
    return torch.export.load(folder / PROGRAM).module()


def _plain(folder: pathlib.Path) -> dict[str, Tensor]:
    with safe_open(folder / WEIGHTS, "pt") as file:
        tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    tensors = load_file(folder / WEIGHTS)
    return {**tensors, **{name: tensors[first] for name, first in tied.items()}}


def _loaded(folder: pathlib.Path) -> dict[str, Tensor]:
    spec = importlib.util.spec_from_file_location("load", folder / LOADER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.state_dict()


def main(probe: str, folders: list[str]) -> None:
    """Look at each folder and print what came of it."""
    blocked: Any = None
    sys.modules["sparsetrain"] = blocked  # where it is installed, importing it fails all the same
    found: dict[str, Any] = {}
    for folder in folders:
        try:
            with torch.no_grad():
                found[folder] = look(pathlib.Path(folder), pathlib.Path(probe))
        except Exception as error:  # whatever an export does where it is loaded is what is asked
            found[folder] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
