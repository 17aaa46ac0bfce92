"""A run that was handed to a cluster whose folders are not here: how it stands there, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
from typing import Any

from sparsetrain.config.errors import JobError
from sparsetrain.config.files import write_whole
from sparsetrain.config.job import Job
from sparsetrain.config.load import parse, to_tree
from sparsetrain.launch.plan import LaunchPlan

KEPT = "elsewhere.json"
NUMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclasses.dataclass(frozen=True)
class Handed:
    """Which launcher has the run, and by which name it goes there."""

    launcher: Any
    kind: str
    name: str

    def state(self) -> str:
        """Return pending, running, finished, failed, interrupted or lost; "elsewhere" where nobody can be asked from
        here. Raises JobError where the cluster does not answer."""
        return str(self.launcher.state(self.name)) if hasattr(self.launcher, "state") else "elsewhere"

    def end(self) -> None:
        """Tell the cluster to end it. Raises JobError where that cannot be told from here."""
        if not hasattr(self.launcher, "end"):
            raise JobError(f"{self.name}: {self.kind} has it in a cluster that cannot be told from here; end it there")
        self.launcher.end(self.name)

    def line(self) -> str:
        """Return where it is, for people."""
        return f"{self.kind} job {self.name}"


def note(folder: pathlib.Path, job: Job, plan: LaunchPlan) -> None:
    """Write into `folder` who has the run. It only informs."""
    tree = {"launcher": to_tree(job)["cluster"]["launcher"], "name": plan.given or plan.name}
    with contextlib.suppress(OSError):
        write_whole(folder / KEPT, json.dumps(tree, indent=2) + "\n")


def handed(folder: pathlib.Path) -> Handed | None:
    """Return who has the run that was launched from `folder`; None where it is here, or nobody can tell."""
    path = folder / KEPT
    try:
        tree = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if tree is None or not NUMBER.fullmatch(tree["name"]):
            return None
        # A folder may be anybody's: what is read of it is an address and a name, and no program.
        launcher = parse({"name": "elsewhere", "cluster": {"launcher": tree["launcher"]}}).cluster.launcher
        return Handed(launcher.build(), launcher.name, tree["name"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError, JobError):
        return None
