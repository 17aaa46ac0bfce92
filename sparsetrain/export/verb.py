"""`sparsetrain export`: a trained model in formats that others read, each loaded back and compared."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sparsetrain import registry
from sparsetrain.config.errors import JobError
from sparsetrain.export import load
from sparsetrain.export.card import card, facts, machine
from sparsetrain.export.check import Differs, alone, compare, verdict
from sparsetrain.export.folder import MARK, check_target, files, made
from sparsetrain.export.format import Format, Unfit
from sparsetrain.export.latency import medians
from sparsetrain.export.table import DENSE, Row, as_text, cells
from sparsetrain.export.trained import Trained, load_trained
from sparsetrain.track.console import clean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for; no formats: all that fit. `out` None: export/ in the run folder."""

    formats: tuple[str, ...] = ()
    step: int | None = None
    out: str | None = None
    dry_run: bool = False
    as_json: bool = False


def export_run(run: str, options: Options) -> None:
    """Export a run (a name or a folder), and print what came of it. Raises JobError."""
    formats = _formats(options.formats)
    if options.out == "":
        raise JobError("--out: is empty; name a folder")
    trained = load_trained(run, options.step, lambda line: print(clean(line), file=sys.stderr))
    target = pathlib.Path(options.out).absolute() if options.out else trained.folder / "export"
    check_target(target)
    refused = {name: why for name, each in formats.items() if (why := _unfit(each, trained))}
    _refuse_asked(refused, options)
    formats = {name: each for name, each in formats.items() if name not in refused}
    if options.dry_run:
        _show_plan(trained, formats, refused, target, options)
        return
    with made(target) as folder:
        rows, failed = _exported(trained, formats, folder)
        refused |= failed
        _refuse_asked(refused, options)
        told, where = facts(trained), machine(torch.get_num_threads())
        document = {
            **told,
            "bound_bytes": round(trained.bound_bytes),
            "machine": where,
            "formats": [dataclasses.asdict(row) for row in rows],
            "refused": refused,
        }
        (folder / "README.md").write_text(card(trained, told, rows, refused, where), encoding="utf-8")
        # By this list the next export knows what it may replace. What data tells of itself may be anything.
        text = json.dumps({**document, "files": [*files(folder), MARK]}, indent=1, default=str)
        (folder / MARK).write_text(f"{text}\n", encoding="utf-8")
    if options.as_json:
        print(json.dumps({"folder": str(target), **document}, indent=2, default=str))
        return
    print(clean(f"{trained.job.name}, {trained.checkpoint}: {trained.masks.sparsity():.2%} sparse, in {target}") + "\n")
    print(as_text(cells(rows, trained.bound_bytes)))
    print(f"\nbound: {trained.bound_bytes:.0f} bytes of active values and mask entropy; latency: {where}")
    _print_refused(refused)


def _formats(asked: tuple[str, ...]) -> dict[str, Format]:
    try:
        found: dict[str, Any] = {name: registry.load("format", name) for name in asked or registry.names("format")}
    except registry.UnknownName as error:
        raise JobError(f"--format: {error}") from error
    return {name: cls(cls.Config()) for name, cls in found.items()}


def _unfit(each: Format, trained: Trained) -> str:
    try:
        return each.unfit(trained)
    except JobError as error:  # the model's couplings, say
        return str(error)


def _refuse_asked(refused: Mapping[str, str], options: Options) -> None:
    """Raise JobError for the first format that was asked for by name and cannot be had."""
    for name in options.formats:
        if name in refused:
            raise JobError(f"--format {name}: {refused[name]}")


def _exported(
    trained: Trained, formats: Mapping[str, Format], folder: pathlib.Path
) -> tuple[list[Row], dict[str, str]]:
    """Write each format into a folder of its own, load it back, here and without sparsetrain, and time it; return a row
    each, the dense model's first, and why others failed, of whose folders nothing is left. Raises OSError."""
    rows, modules, failed = {}, {}, {}
    folders = {name: folder / re.sub(r"[^A-Za-z0-9_]+", "-", name) for name in formats}
    for name, each in formats.items():
        try:
            rows[name], modules[name] = _written(trained, name, each, folders[name])
        except OSError:
            raise
        except Exception as error:  # whatever torch, or a format of a user's, does with a user's model
            failed[name] = _reason(error)
    found = alone(trained, {name: folders[name] for name in rows})
    failed |= {name: why for name, told in found.items() if (why := verdict(told))}
    for name in failed:
        shutil.rmtree(folders[name], ignore_errors=True)
    rows = {name: dataclasses.replace(row, alone=found[name]) for name, row in rows.items() if name not in failed}
    times = _times(trained, {name: modules[name] for name in rows})
    dense = Row(format=DENSE, bytes=trained.dense_bytes)
    return [dataclasses.replace(row, latency_s=times[row.format]) for row in (dense, *rows.values())], failed


def _written(trained: Trained, name: str, each: Format, folder: pathlib.Path) -> tuple[Row, nn.Module]:
    folder.mkdir()
    each.write(trained, folder)
    if each.decodes:
        shutil.copyfile(load.__file__, folder / "load.py")
    began = time.perf_counter()
    module = each.read(trained, folder)
    took = time.perf_counter() - began
    file = folder / each.file
    row = Row(
        format=name,
        file=f"{folder.name}/{file.name}",
        bytes=file.stat().st_size,
        load_s=took,
        difference=compare(module, trained),
    )
    return row, module


def _times(trained: Trained, modules: Mapping[str, nn.Module]) -> dict[str, dict[int, float]]:
    """Return by format the median seconds for one sample and for all of them."""
    every = {DENSE: trained.model, **modules}
    times: dict[str, dict[int, float]] = {name: {} for name in every}
    for batch in sorted({1, len(trained.inputs)}):
        for name, seconds in medians(every, trained.inputs[:batch]).items():
            times[name][batch] = seconds
    return times


def _reason(error: Exception) -> str:
    if isinstance(error, Unfit | Differs | JobError):
        return str(error)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"


def _show_plan(
    trained: Trained, formats: Mapping[str, Format], refused: Mapping[str, str], target: pathlib.Path, options: Options
) -> None:
    if options.as_json:
        plan = {"folder": str(target), "checkpoint": trained.checkpoint, "formats": list(formats), "refused": refused}
        print(json.dumps(plan, indent=2))
        return
    print(f"would export {trained.job.name}, {trained.checkpoint}, to {target}: {', '.join(formats) or 'nothing'}")
    _print_refused(refused)


def _print_refused(refused: Mapping[str, str]) -> None:
    for name, why in refused.items():
        print(f"left out {name}: {why}")
