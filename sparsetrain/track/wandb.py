"""Weights & Biases: one run per job, rank 0 only, offline without a key; never prompts, never fails the training.

Every call to the client is made on a thread of its own (see background.py). The run's id lies in the run folder, so a
job that goes on after a restart, or with other workers, goes on in its run; offline it adds a segment to it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import netrc
import os
import pathlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsetrain.config.job import Wandb
from sparsetrain.track.background import CLOSE_S, Background
from sparsetrain.track.density_picture import DensityPicture
from sparsetrain.track.notes import Alert, Histogram, Note, Table
from sparsetrain.track.sink import Row

INIT_S = 10  # seconds; an unreachable server costs the thread about twice as much, once
FLUSH_S = 2.0  # what a process that is killed may lose of its rows
ARTIFACTS_S = 600.0  # seconds that the end of a run waits where files have to be uploaded
ALERT_S = 600  # seconds in which W&B sends one alert of a title
STEP = "train/step"
SUMMARIES = {
    "train/loss": "min",
    "eval/loss": "min",
    "eval/bits_per_byte": "min",
    "eval/accuracy": "max",
    "throughput/samples_per_s": "mean",
    "time/step_s": "mean",
}


class WandbSink(Background):
    """Logs rows, tables, histograms, pictures and alerts to W&B on our own step axis."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Options are in `log.wandb`."""

    def __init__(
        self,
        settings: Wandb,
        folder: pathlib.Path,
        name: str,
        about: Callable[[], dict[str, Any]],
        say: Callable[[str], None],
        room: int | None = None,
        patience: float | None = None,
    ) -> None:
        limits = {} if room is None else {"room": room}
        waits = (ARTIFACTS_S if settings.artifacts else CLOSE_S) if patience is None else patience
        super().__init__(
            "W&B", lambda: WandbWriter(settings, folder, name, about, self.warn, waits), say, patience=waits, **limits
        )


class WandbWriter:
    """Speaks to the client; see Background. `about` returns the run's config, `warn` hears that W&B is unreachable."""

    def __init__(
        self,
        settings: Wandb,
        folder: pathlib.Path,
        name: str,
        about: Callable[[], dict[str, Any]],
        warn: Callable[[str], None],
        patience: float,
    ) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise RuntimeError("the package wandb is missing: pip install wandb") from error
        self.wandb = wandb
        self.folder = folder
        self.artifacts = settings.artifacts
        self.picture = DensityPicture()
        mode = resolve_mode(settings.mode, os.environ, pathlib.Path.home() / ".netrc")
        arguments: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group,
            "tags": list(settings.tags),
            "name": name,
            "id": run_id(folder, name, os.environ),
            "resume": "allow",
            "dir": str(folder),
            "config": about(),
        }
        # The client would record the command line and the address of the git remote: both may hold secrets.
        wanted = {
            "silent": True,
            "quiet": True,
            "console": "off",
            "save_code": False,
            "disable_code": True,
            "disable_git": True,
            "disable_job_creation": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "init_timeout": INIT_S,
            "x_transaction_log_flush_interval": FLUSH_S,
            "finish_timeout": 0.8 * patience,
            "reinit": "create_new",  # an earlier run of this process may hang in its end
        }
        known = wandb.Settings.model_fields
        quiet = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
        try:
            self.run = wandb.init(mode=mode, settings=quiet, **arguments)
        except Exception as error:
            if mode != "online":
                raise
            warn(f"cannot be reached ({type(error).__name__}): this run is recorded offline")
            wandb.teardown()  # or its helper process would still hold the id
            self.run = wandb.init(mode="offline", settings=quiet, **arguments)
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)
        for key, summary in SUMMARIES.items():
            self.run.define_metric(key, step_metric=STEP, summary=summary)

    def log(self, row: Row) -> None:
        """Log one row; `train/step` is the x axis, W&B's own step is never set."""
        self.run.log(row)

    def tell(self, step: int, notes: Sequence[Note]) -> None:
        """Log tables, histograms and the picture of the masks; send alerts."""
        media: dict[str, Any] = {}
        for note in notes:
            if isinstance(note, Alert):
                level = getattr(self.wandb.AlertLevel, note.level)
                self.run.alert(title=note.kind, text=note.text, level=level, wait_duration=ALERT_S)
            elif isinstance(note, Histogram):
                pair = (list(note.counts), list(note.edges))
                media[f"histograms/{note.name}"] = self.wandb.Histogram(np_histogram=pair)
            else:
                rows = [list(row) for row in note.rows]
                media[f"tables/{note.name}"] = self.wandb.Table(
                    columns=list(note.columns), data=rows, allow_mixed_types=True
                )
                media |= self._drawn(step, note) if note.name == "layers" else {}
        if media:
            self.run.log({STEP: step, **media})

    def close(self, status: str) -> None:
        """Add the artifacts that the job asks for, and finish the run."""
        if status == "finished":
            for name in self.artifacts:
                self._artifact(name)
        self.run.finish(exit_code=0 if status == "finished" else 1)

    def _drawn(self, step: int, layers: Table) -> dict[str, Any]:
        """Return the picture of all layers' densities over time, where they have changed and there is pillow."""
        name, density = layers.columns.index("name"), layers.columns.index("density")
        found = {row[name]: row[density] for row in layers.rows if row[density] is not None}
        if not found or not self.picture.add(step, found):
            return {}
        try:
            return {"masks/density": self.wandb.Image(self.picture.draw(), caption="density of each layer over time")}
        except ImportError:
            return {}

    def _artifact(self, name: str) -> None:
        """Log the newest checkpoint's model or masks, or a report."""
        found: list[pathlib.Path] = []
        if name == "report":
            from sparsetrain.track.report import write_report

            write_report([self.folder], self.folder / "report")
            found = [path for path in sorted((self.folder / "report").iterdir()) if path.is_file()]
        else:
            complete = sorted(path.parent for path in self.folder.glob("checkpoints/step_*/COMPLETE"))
            found = [path for path in (folder / f"{name}.safetensors" for folder in complete[-1:]) if path.is_file()]
        if found:
            artifact = self.wandb.Artifact(f"{self.run.id}-{name}", type=name)
            for path in found:
                artifact.add_file(str(path), name=path.name)
            self.run.log_artifact(artifact)


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


def run_id(folder: pathlib.Path, name: str, environment: Mapping[str, str]) -> str:
    """Return the run's W&B id; it is drawn once, or given by the agent of a W&B sweep, and kept beside the run."""
    path = folder / "wandb.json"
    try:
        if path.is_file():
            return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # torn: another run begins
    identity = f"{name[:50].replace('.', '-')}-{secrets.token_hex(4)}"
    if environment.get("WANDB_SWEEP_ID") and environment.get("WANDB_RUN_ID"):
        identity = environment["WANDB_RUN_ID"]
    path.write_text(json.dumps({"id": identity}), encoding="utf-8")
    return identity
