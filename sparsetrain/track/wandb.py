"""Weights & Biases: one run per job, rank 0 only, offline without a key; never prompts, never fails the training."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import netrc
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from sparsetrain.config.job import Wandb

Row = dict[str, float]
log = logging.getLogger("sparsetrain.track")
INIT_TIMEOUT = 10  # seconds; an unreachable server costs this much once


class WandbSink:
    """Logs rows to W&B on our own step axis; the id lives in the run folder, so a resumed job goes on in its run."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options are in `log.wandb`."""

    def __init__(self, settings: Wandb, folder: pathlib.Path, name: str, job_tree: dict[str, Any]) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise RuntimeError("the package wandb is missing: pip install wandb") from error
        mode = resolve_mode(settings.mode, os.environ, pathlib.Path.home() / ".netrc")
        arguments: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group,
            "tags": list(settings.tags),
            "name": name,
            "id": _run_id(folder, name),
            "resume": "allow",
            "dir": str(folder),
            "config": job_tree,
        }
        quiet = wandb.Settings(
            silent=True, console="off", init_timeout=INIT_TIMEOUT, save_code=False, disable_git=False, quiet=True
        )
        try:
            self.run = wandb.init(mode=mode, settings=quiet, **arguments)
        except Exception as error:
            if mode != "online":
                raise
            log.warning("W&B cannot be reached (%s): this run is recorded offline", type(error).__name__)
            self.run = wandb.init(mode="offline", settings=quiet, **arguments)
        self.run.define_metric("train/step")
        self.run.define_metric("*", step_metric="train/step")

    def log(self, row: Row) -> None:
        """Log one row; `train/step` is the x axis, W&B's own step is never set."""
        self.run.log(row)

    def close(self, status: str) -> None:
        """Finish the run."""
        self.run.finish(exit_code=0 if status == "finished" else 1)


def resolve_mode(wanted: str, environment: Mapping[str, str], netrc_file: pathlib.Path) -> str:
    """Return online, offline or disabled: the job's word, else WANDB_MODE, else online with a key, else offline."""
    if wanted != "auto":
        return wanted
    if environment.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return environment["WANDB_MODE"]
    return "online" if _has_key(environment, netrc_file) else "offline"


def _has_key(environment: Mapping[str, str], netrc_file: pathlib.Path) -> bool:
    if environment.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc(str(netrc_file)).hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(folder: pathlib.Path, name: str) -> str:
    """Return the run's W&B id; it is drawn once and kept beside the run."""
    path = folder / "wandb.json"
    if path.exists():
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    identity = f"{name[:50].replace('.', '-')}-{secrets.token_hex(4)}"
    path.write_text(json.dumps({"id": identity}), encoding="utf-8")
    return identity
