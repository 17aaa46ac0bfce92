"""What the dashboard of a Ray cluster answers, over HTTP: so that a mistake is one line, not a client's traceback."""

from __future__ import annotations

import json
import pathlib
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from sparsetrain.config.errors import JobError

FIELD = "cluster.launcher.address"
ANSWER_S = 20.0
LARGEST = 1 << 20  # bytes of an answer


class Dashboard:
    """The head at `address`; the token, if any, is that of RAY_AUTH_TOKEN or in the file RAY_AUTH_TOKEN_PATH."""

    def __init__(self, address: str, env: Mapping[str, str]) -> None:
        self.address = address.rstrip("/")
        self.headers = headers(env)

    def refuse_silent(self) -> None:
        """Raise JobError where no dashboard answers, or not to us."""
        found = self._get("/api/version")
        if not isinstance(found, dict) or "ray_version" not in found:
            raise JobError(f"{FIELD}: what answers at {self.address} is no Ray dashboard")

    def state(self, name: str) -> str:
        """Return the state of the job that was submitted as `name` (RUNNING, SUCCEEDED, ...), "" where none was.
        Raises JobError."""
        found = self._get(f"/api/jobs/{name}", missing={})
        return str(found.get("status", "")) if isinstance(found, dict) else ""

    def code(self, name: str) -> int | None:
        """Return the exit code of the job that was submitted as `name`, None where there is none. Raises JobError."""
        found = self._get(f"/api/jobs/{name}", missing={})
        code = found.get("driver_exit_code") if isinstance(found, dict) else None
        return code if isinstance(code, int) and 0 < code < 256 else None

    def stop(self, name: str) -> None:
        """Let the job that was submitted as `name` end. Raises JobError."""
        self._get(f"/api/jobs/{name}/stop", method="POST")

    def _get(self, path: str, missing: Any = None, method: str = "GET") -> Any:
        request = urllib.request.Request(self.address + path, headers=self.headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return json.loads(answer.read(LARGEST))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404 and missing is not None:
                return missing
            raise JobError(f"{FIELD}: {self.address} {self._why(error.code)}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise JobError(f"{FIELD}: no Ray dashboard answers at {self.address}: {reason}") from None

    def _why(self, code: int) -> str:
        if code not in (401, 403):
            return f"is no Ray dashboard (HTTP {code})"
        if "Authorization" in self.headers:
            return "does not take the token in RAY_AUTH_TOKEN"
        return "wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"


def headers(env: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that carry the token of the environment. Raises JobError where its file cannot be read."""
    token, path = env.get("RAY_AUTH_TOKEN"), env.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = pathlib.Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise JobError(f"RAY_AUTH_TOKEN_PATH: {path} cannot be read: {error}") from None
    return {"Authorization": f"Bearer {token}"} if token else {}
