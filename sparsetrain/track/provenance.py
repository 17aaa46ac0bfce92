"""Where a run comes from, without secrets: the job, versions, the state of the user's git folder, the data."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
from collections.abc import Mapping
from typing import Any

GIT_S = 10.0  # seconds that git may take
HIDDEN = "***"
SECRET = re.compile(r"secret|passw|token|credential|api_?key|access_?key|private_?key|^auth", re.IGNORECASE)
LOGIN = re.compile(r"(\w://)[^/@\s]*@")  # what stands between scheme and host of a URL
QUERY = re.compile(r"([?&][^=&\s]*(?:sig|secret|token|key|credential|passw)[^=&\s]*=)[^&\s]*", re.IGNORECASE)


def about(job_tree: Mapping[str, Any], folder: pathlib.Path, **more: Any) -> dict[str, Any]:
    """Return the job with `sparsetrain` beside it: the run folder's versions, git, and `more`; nothing secret."""
    versions: Any = {}
    path = folder / "env.json"
    try:
        if path.is_file():
            versions = json.loads(path.read_text(encoding="utf-8")).get("versions", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    facts = {"versions": versions, "git": git_state(pathlib.Path.cwd()), **more}
    return {**without_secrets(job_tree), "sparsetrain": without_secrets(facts)}


def without_secrets(value: Any) -> Any:
    """Return the tree with *** for what has the name of a secret, and for logins and signatures in URLs."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if SECRET.search(str(key)) and isinstance(inner, str) and inner else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, str):
        return QUERY.sub(rf"\1{HIDDEN}", LOGIN.sub(rf"\1{HIDDEN}@", value))
    return value


def git_state(folder: pathlib.Path) -> dict[str, Any]:
    """Return {"sha", "dirty"} of the git folder that this folder is in, nothing where there is none or no git."""
    try:
        sha = _git(folder, "rev-parse", "HEAD").strip()
        return {"sha": sha, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(folder: pathlib.Path, *words: str) -> str:
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", *words], cwd=folder, env=quiet, capture_output=True, text=True, timeout=GIT_S, check=True
    )
    return done.stdout
