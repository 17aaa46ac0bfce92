"""The verb `trace`: one file of what all ranks of a run did, for Perfetto."""

from __future__ import annotations

import json
import pathlib

from sparsetrain.config.errors import JobError
from sparsetrain.config.files import write_whole
from sparsetrain.launch.run import find_folder
from sparsetrain.track.trace import merge


def write_trace(name: str, out: str | None) -> None:
    """Merge the spans of a run (a name or a folder) into FILE and say where it lies. Raises JobError where there are
    none, or the file cannot be written."""
    folder = find_folder(name)
    merged = merge(folder)
    if not merged.spans:
        raise JobError(f"{name}: no spans in {folder}/trace; a run with log.trace=true writes them")
    path = pathlib.Path(out) if out else folder / "trace.json"
    try:
        write_whole(path, json.dumps(merged.tree, separators=(",", ":")))
    except OSError as error:
        raise JobError(f"--out: cannot write {path}: {error.strerror or error}") from error
    print(f"{path}: {merged.spans} spans of {merged.ranks} ranks; open it at ui.perfetto.dev or chrome://tracing")
    for node, shift in merged.shifts.items():
        print(f"  the clock of {node} was {shift * 1e3:+.3f} ms off rank 0's")
    if merged.left_out:
        print(f"  {merged.left_out} spans more are left out")
