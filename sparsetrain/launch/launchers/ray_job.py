"""`ray job submit`: a job for a Ray cluster that runs already, over the HTTP of its dashboard."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
from typing import Annotated, Any

from pydantic import Field

from sparsetrain.config.errors import JobError
from sparsetrain.launch.dashboard import Dashboard
from sparsetrain.launch.launchers.remote import VARIABLE, Folder, blocks, for_ranks, job_text, run_words
from sparsetrain.launch.launchers.request import Request
from sparsetrain.launch.plan import File, LaunchPlan, ray_plan
from sparsetrain.launch.run import FAILED, STOPPED

# No user and password in it: it is written down.
Address = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9_.:\[\]-]+(/[A-Za-z0-9_./-]*)?$", max_length=300)]
Pattern = Annotated[str, Field(pattern=r"^[^\n]+$", max_length=200)]

INSTALL = 'pip install "sparsetrain[submit]" brings it'
EXCLUDES = (".git", ".venv", "/runs", "/wandb")  # what makes a working folder too large for Ray, 500 MiB at most
ANSWER_S = 60.0
STATES = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "finished",
    "FAILED": "failed",
    "STOPPED": "interrupted",
}
ID = "--submission-id"
SCRIPT = 'job=$(mktemp -d)/job.yaml && printf "%s" "${variable}" > "$job" && exec {run}'


class RayJob:
    """A job for a running Ray cluster, submitted over HTTP; its driver runs on the cluster's head."""

    remote = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`address`: http(s)://HOST:8265 of the head. `working_dir` goes there but for .git, .venv, runs, wandb and
        what `excludes` names as .gitignore would. `folder`: where runs lie there, from the home folder on."""

        address: Address | None = None
        working_dir: str = "."
        excludes: tuple[Pattern, ...] = ()
        folder: Folder = "runs"
        python: Folder = "python"

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be submitted. Raises JobError for a mistake in the job."""
        config, job = self.config, request.job
        if config.address is None:
            raise JobError("cluster.launcher.address: give the address of the head's dashboard, http://HOST:8265")
        if job.cluster.address:
            raise JobError("cluster.address: the job finds the cluster that it is submitted to; leave it out")
        place = pathlib.Path(config.working_dir).absolute()
        if not place.is_dir():
            raise JobError(f"cluster.launcher.working_dir: {place} is no folder")
        ray = request.program("ray", INSTALL)
        path = f"{request.folder}/runtime_env.yaml"
        script = SCRIPT.format(variable=VARIABLE, run=run_words('"$job"', config.folder, config.python))
        where = ("--address", config.address, ID, job.name)
        command = (ray, "job", "submit", *where, "--working-dir", str(place), "--runtime-env", path)
        follow = () if request.wait else ("--no-wait",)
        return dataclasses.replace(
            ray_plan(for_ranks(job, address="auto"), request.env),
            launcher="ray_job",
            address=config.address,
            command=(*command, *follow, "--", "sh", "-c", script),
            files=(File(path=path, text=self.runtime_env(job_text(job))),),
        )

    def runtime_env(self, job: str) -> str:
        """Return the YAML of Ray's runtime environment: what is not uploaded, and the job."""
        tree: dict[str, Any] = {"excludes": [*EXCLUDES, *self.config.excludes], "env_vars": {VARIABLE: job}}
        return blocks(tree)

    def ready(self, plan: LaunchPlan) -> LaunchPlan:
        """Return the plan with a submission id that the cluster does not know yet. Raises JobError where `ray job` is
        not installed, the head does not answer, or the run is a job there that has not ended."""
        refuse_bare(plan.command[0])
        head = Dashboard(str(self.config.address), os.environ)
        head.refuse_silent()
        number, name = 1, plan.name
        while state := head.state(name):
            if state in ("PENDING", "RUNNING"):
                raise JobError(
                    f"name: {name} is {state.lower()} in that cluster; give a new name, or end it with: ray job stop "
                    f"--address {self.config.address} {name}"
                )
            number += 1
            name = f"{plan.name}-{number}"
        if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's client would not send it
        place = plan.command.index(ID) + 1
        return dataclasses.replace(plan, given=name, command=(*plan.command[:place], name, *plan.command[place + 1 :]))

    def follow(self, plan: LaunchPlan, as_json: bool, code: int) -> int:
        """Return the exit code of a job whose output was shown to the end: Ray gives 0 for one that was stopped, too,
        and 1 for all that have failed. Raises JobError where the head no longer answers."""
        if code not in (0, FAILED):
            return code
        head, name = Dashboard(str(self.config.address), os.environ), plan.command[plan.command.index(ID) + 1]
        state = head.state(name)
        if state == "FAILED":
            return head.code(name) or FAILED
        return {"SUCCEEDED": code, "STOPPED": STOPPED}.get(state, FAILED)

    def state(self, name: str) -> str:
        """Return how a job of this name stands; see elsewhere.Handed. Raises JobError where nobody answers."""
        return STATES.get(Dashboard(str(self.config.address), os.environ).state(name), "lost")

    def end(self, name: str) -> None:
        """Let a job of this name end. Raises JobError where the head does not answer."""
        Dashboard(str(self.config.address), os.environ).stop(name)


def refuse_bare(ray: str) -> None:
    """Raise JobError where Ray is installed without its job client."""
    try:
        done = subprocess.run([ray, "job", "--help"], capture_output=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"cluster.launcher: {ray} does not answer: {error}") from None
    if done.returncode:
        raise JobError(f"cluster.launcher: `ray job` is not installed here; {INSTALL}")
