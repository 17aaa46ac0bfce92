"""`sparsetrain export` as the command line knows it; everything heavy is imported inside, so that `--help` is quick."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--format", "formats", multiple=True, metavar="NAME", help="Repeatable; default: all that fit.")
@click.option("--step", type=click.IntRange(0), default=None, help="Of the checkpoint; default: the newest one.")
@click.option("--out", default=None, metavar="FOLDER", help="Default: export/ in the run folder.")
@click.option("--dry-run", is_flag=True, help="Show which formats fit and why others do not; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def export(run: str, formats: Any, step: int | None, out: str | None, dry_run: bool, as_json: bool) -> None:
    """Write what RUN (a name or a run folder) has trained for others, in the formats that `list format` shows.

    Each is loaded back, also where there is no sparsetrain, and its outputs are compared to 1e-5. A table shows bytes
    and latencies, a model card says how it was trained.
    """
    from sparsetrain.export.verb import Options, export_run

    export_run(run, Options(formats=formats, step=step, out=out, dry_run=dry_run, as_json=as_json))
