"""`config plot`: the schedules of a job as a picture."""

from __future__ import annotations

import json
import pathlib

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.worker.preview import preview


def plot_job(job: Job, out: str | None, as_json: bool) -> str:
    """Return the curves as JSON, or draw them and return where the picture lies. Raises JobError where that fails."""
    rows = preview(job)
    if as_json:
        return json.dumps({"name": job.name, "rows": rows})
    path = pathlib.Path(out or f"{job.name}.png")
    try:
        from sparsetrain.track.schedule import draw

        draw(rows, job.name, path)
    except ImportError as error:
        raise JobError(
            "config plot: needs matplotlib: pip install 'sparsetrain[report]'; --json works without"
        ) from error
    except (OSError, ValueError) as error:
        raise JobError(f"--out: cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    return str(path)
