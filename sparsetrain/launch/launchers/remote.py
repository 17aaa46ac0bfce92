"""What launchers share whose cluster is elsewhere: the job goes there as text, and the run stays in a folder there."""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import yaml
from pydantic import Field

from sparsetrain.config.job import Job
from sparsetrain.config.load import parse, to_tree, to_yaml

# A folder over there; it becomes part of a command line.
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_/][A-Za-z0-9_./-]*$", max_length=200)]
VARIABLE = "SPARSETRAIN_JOB"  # holds the job's text where no file of ours can be


def for_ranks(job: Job, **cluster: Any) -> Job:
    """Return the job without its launcher, whoever reads it has been started already, and with these settings of
    `cluster`."""
    tree = to_tree(job)
    del tree["cluster"]["launcher"]
    tree["cluster"].update(cluster)
    return parse(tree)


def job_text(job: Job) -> str:
    """Return the job for the Ray cluster in which its own `run` is started."""
    return to_yaml(for_ranks(job, address="auto"))


def run_words(job: str, folder: str, python: str = "python") -> str:
    """Return the shell's words that run the job file `job` (words of the shell, too) and keep the run in `folder`,
    which, if relative, is in the home of whom they run as."""
    kept = shlex.quote(folder) if folder.startswith("/") else f'"$HOME"/{shlex.quote(folder)}'
    return f"{shlex.quote(python)} -m sparsetrain run {job} log.folder={kept}"


class Blocks(yaml.SafeDumper):
    """Writes texts of several lines as blocks that people can read, and every part in full."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing is written as a reference to what stands elsewhere."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Blocks.add_representer(str, _text)


def blocks(*trees: dict[str, Any]) -> str:
    """Return YAML of one document for each tree, keys in the order that they have."""
    return yaml.dump_all(trees, Dumper=Blocks, sort_keys=False, width=120)
