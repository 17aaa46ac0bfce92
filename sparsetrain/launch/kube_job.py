"""A RayJob in the hands of Kubernetes: looked up before it is applied, and followed to its end."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

from sparsetrain.config.errors import JobError
from sparsetrain.launch.program import answer
from sparsetrain.launch.run import FAILED, STOPPED
from sparsetrain.launch.signals import Stopped, listening

POLL_S = 2.0
ENDED = ("Complete", "Failed", "ValidationFailed")  # of status.jobDeploymentStatus


def refuse_taken(kubectl: str, name: str, namespace: str) -> None:
    """Raise JobError where the cluster does not answer, has no RayJobs, or has one of this name already."""
    found = status(kubectl, name, namespace)
    if found is not None:
        state = found[1] or found[0] or "waiting"
        raise JobError(
            f"name: {name} is a RayJob in {namespace} already ({state}); give a new name, or remove it with: kubectl "
            f"delete rayjob {name} -n {namespace}"
        )


def status(kubectl: str, name: str, namespace: str) -> tuple[str, str] | None:
    """Return (jobDeploymentStatus, jobStatus), None where there is no such RayJob. Raises JobError."""
    words = (kubectl, "get", "rayjobs.ray.io", name, "-n", namespace, "--ignore-not-found", "-o", "json")
    try:
        said = answer(*words)
        found = json.loads(said) if said.strip() else {}
    except ValueError as error:
        raise JobError(f"cluster.launcher: {pathlib.Path(kubectl).name}: {error}") from None
    if not found:
        return None
    told = found.get("status") or {}
    return str(told.get("jobDeploymentStatus", "")), str(told.get("jobStatus", ""))


def remove(kubectl: str, name: str, namespace: str) -> None:
    """Let Kubernetes remove a RayJob and all that belongs to it. Raises JobError."""
    answer(kubectl, "delete", "rayjobs.ray.io", name, "-n", namespace, "--ignore-not-found", "--wait=false")


def follow(kubectl: str, name: str, namespace: str, as_json: bool) -> int:
    """Print the states of the job, and what it prints itself, until it ends; return 0, or 1 where it has failed.
    Ctrl-C ends the following only. Raises JobError where the cluster does not answer."""
    told, logs, stream = "", None, sys.stderr if as_json else sys.stdout
    with listening() as stop:
        try:
            while True:
                stop.check()
                found = status(kubectl, name, namespace)
                if found is None:
                    raise JobError(f"name: the RayJob {name} is no longer in {namespace}")
                if found[0] and found[0] != told:
                    told = found[0]
                    print(f"kuberay: {told.lower()}", file=stream, flush=True)
                if told == "Running" and logs is None:
                    words = [kubectl, "logs", "--follow", f"job/{name}", "-n", namespace]
                    logs = subprocess.Popen(words, stdout=stream if as_json else None, start_new_session=True)
                if told in ENDED:
                    return 0 if found[1] == "SUCCEEDED" else FAILED
                time.sleep(POLL_S)
        except Stopped:
            print(f"{name} goes on; end it with: kubectl delete rayjob {name} -n {namespace}", file=sys.stderr)
            return STOPPED
        finally:
            if logs is not None:
                _close(logs)


def _close(process: subprocess.Popen[bytes]) -> None:
    """Let `kubectl logs` print what has come, then end it."""
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
