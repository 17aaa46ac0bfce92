"""The `sparsetrain` command. Exit code 0: done; 1: a run failed; 2: a mistake of the user, in one line; 130: stopped.

Everything heavy is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from sparsetrain.config.errors import JobError
from sparsetrain.registry import KINDS, nearest

if TYPE_CHECKING:
    from sparsetrain.bench.ranks import Ranks


class Verbs(click.Group):
    """A group whose unknown commands answer with the nearest one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return what click resolves. Raises JobError for an unknown verb."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            verbs = sorted(self.commands)
            raise JobError(f"{args[0]}: no such command; allowed: {', '.join(verbs)}{nearest(args[0], verbs)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparsetrain")
def cli() -> None:
    """Sparse distributed training: sparse gradients between workers, sparse weights in the model."""


@cli.command()
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Check the job and show the plan; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
@click.option("--fresh", is_flag=True, help="Start anew: an existing run folder is moved aside to NAME.N.")
@click.option("--against", multiple=True, metavar="JOB|dense", help="Run this first, then compare (repeatable).")
def run(source: str, overrides: tuple[str, ...], dry_run: bool, as_json: bool, fresh: bool, against: Any) -> None:
    """Train JOB (a YAML file or a preset) with settings like train.steps=100."""
    from sparsetrain.config.load import load_job
    from sparsetrain.launch.run import Options, run_job, show_plan

    job = load_job(source, overrides)
    options = Options(fresh=fresh, as_json=as_json, against=tuple(against))
    sys.exit(show_plan(job, options) if dry_run else run_job(job, options))


@cli.command()
@click.argument("name")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def resume(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Continue run NAME (or a run folder) from its newest checkpoint."""
    from sparsetrain.launch.run import Options, resume_run

    sys.exit(resume_run(name, overrides, Options(as_json=as_json)))


@cli.group()
def config() -> None:
    """Show jobs and what a job file may hold."""


@config.command("show")
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of YAML.")
def config_show(source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print JOB in full, with all defaults."""
    from sparsetrain.config.load import load_job, to_tree, to_yaml

    job = load_job(source, overrides)
    click.echo(json.dumps(to_tree(job), indent=2) if as_json else to_yaml(job), nl=as_json)


@config.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a job file."""
    from sparsetrain.launch.listing import schema

    click.echo(json.dumps(schema(), indent=2))


@cli.command("list")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def list_names(kind: str | None, as_json: bool) -> None:
    """List presets and everything else that a job can name; KIND: one sort only."""
    from sparsetrain.launch.listing import entries, table

    kinds = ["preset", *KINDS]
    if kind is not None and kind not in kinds:
        raise JobError(f"{kind}: no such kind; allowed: {', '.join(kinds)}{nearest(kind, kinds)}")
    found = {each: entries(each) for each in ([kind] if kind else kinds)}
    click.echo(json.dumps(found, indent=2) if as_json else table(found))


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", default=None, metavar="FOLDER", help="Where the report goes; default: report/ of the last run.")
def report(runs: tuple[str, ...], out: str | None) -> None:
    """Compare runs (names or folders): a table, and a report with figures."""
    from sparsetrain.launch.run import report_runs

    report_runs(runs, out)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def doctor(as_json: bool) -> None:
    """Show what this machine offers: versions, cores, memory, disk, W&B mode, network, compiler."""
    from sparsetrain.launch.doctor import examine

    facts = examine(os.environ)
    width = max(len(key) for key in facts)
    lines = [f"{key.ljust(width)}  {value}" for key, value in facts.items()]
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines))


@cli.group(cls=Verbs)
def bench() -> None:
    """Measure on this machine: kernels, codes, and the exchange over links of a given rate."""


@bench.command("select")
@click.option("--size", "sizes", type=float, multiple=True, default=(1e7,), show_default=True, help="Elements.")
@click.option("--density", "densities", type=float, multiple=True, default=(0.001, 0.01, 0.1), show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="Cores that a kernel may take.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def bench_select(
    sizes: tuple[float, ...], densities: tuple[float, ...], threads: int, rounds: int, as_json: bool
) -> None:
    """Time selection with error feedback against one memory pass and against torch.topk."""
    from sparsetrain.bench.select import COLUMNS, measure
    from sparsetrain.bench.table import render

    try:
        rows = measure([int(size) for size in sizes], densities, threads, rounds)
    except (ValueError, OverflowError) as error:
        raise JobError(f"bench select: {error}") from error
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))


@bench.command("codec")
@click.option("--density", "densities", type=float, multiple=True, default=(0.001, 0.01, 0.1), show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each code.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def bench_codec(densities: tuple[float, ...], rounds: int, as_json: bool) -> None:
    """Measure every code on a real gradient: bits per entry, value error, throughput."""
    from sparsetrain.bench.codec import COLUMNS, measure
    from sparsetrain.bench.table import render

    try:
        rows = measure(densities, rounds)
    except ValueError as error:
        raise JobError(f"bench codec: {error}") from error
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))


@bench.command("exchange")
@click.option("--hosts", type=click.IntRange(0), default=4, show_default=True, help="Ranks; 0: 4 on loopback.")
@click.option("--rate", metavar="RATE", help="Of each link: 100mbit (default), 1gbit, none, and the like.")
@click.option("--size", type=float, default=25e6, show_default=True, help="Elements of the gradient.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--loopback", is_flag=True, help="Plain processes instead of network namespaces; needs no root.")
@click.option("--limit", type=float, default=1800.0, show_default=True, help="Seconds after which a rank is ended.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def bench_exchange(
    hosts: int, rate: str | None, size: float, density: float, rounds: int, loopback: bool, limit: float, as_json: bool
) -> None:
    """Time the mean of a gradient over several hosts: dense, naive, PowerSGD, and ours."""
    from sparsetrain.bench.exchange import Plan, measure, show

    with _refusing("bench exchange"):
        ranks = _ranks(hosts, rate, loopback, limit, 4)
        result = measure(ranks, Plan(size=int(size), density=density, rounds=rounds))
    click.echo(json.dumps(result, indent=2) if as_json else show(result))


@bench.command("step")
@click.option("--hosts", type=click.IntRange(0), default=2, show_default=True, help="Ranks; 0: 2 on loopback.")
@click.option("--rate", metavar="RATE", help="Of each link: 100mbit (default), 1gbit, none, and the like.")
@click.option("--batch", type=int, default=4, show_default=True, help="Sequences a rank and step.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries sent a step.")
@click.option("--steps", type=int, default=10, show_default=True, help="Steps in a turn.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--loopback", is_flag=True, help="Plain processes instead of network namespaces; needs no root.")
@click.option("--limit", type=float, default=1800.0, show_default=True, help="Seconds after which a rank is ended.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def bench_step(
    hosts: int,
    rate: str | None,
    batch: int,
    density: float,
    steps: int,
    rounds: int,
    loopback: bool,
    limit: float,
    as_json: bool,
) -> None:
    """Time whole training steps of a GPT: compute only, DDP with torch's hooks, and ours."""
    from sparsetrain.bench.step import Plan, measure, show

    with _refusing("bench step"):
        ranks = _ranks(hosts, rate, loopback, limit, 2)
        result = measure(ranks, Plan(batch=batch, density=density, steps=steps, rounds=rounds))
    click.echo(json.dumps(result, indent=2) if as_json else show(result))


def _ranks(hosts: int, rate: str | None, loopback: bool, limit: float, default: int) -> Ranks:
    from sparsetrain.bench.ranks import Ranks

    loopback = loopback or hosts == 0
    return Ranks(
        hosts=hosts or default, rate=rate or ("none" if loopback else "100mbit"), loopback=loopback, limit_s=limit
    )


@contextlib.contextmanager
def _refusing(verb: str) -> Iterator[None]:
    """Say in one line why ranks cannot be measured like this; a rank that failed shows its last lines, code 1."""
    from sparsetrain.bench.hosts import HostsUnavailable
    from sparsetrain.bench.ranks import RankFailed

    try:
        yield
    except HostsUnavailable as error:
        raise JobError(f"{verb}: {error}; --loopback needs none") from error
    except (ValueError, OverflowError) as error:
        raise JobError(f"{verb}: {error}") from error
    except RankFailed as error:
        click.echo(str(error), err=True)
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit; a user's mistake is one line on standard error and code 2."""
    # Like `python -m`: `module:Class` in a job may name a module in the current folder.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        sys.exit(cli.main(arguments, prog_name="sparsetrain", standalone_mode=False) or 0)
    except JobError as error:
        _refuse(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.UsageError as error:
        verb = f"{error.ctx.command_path}: " if error.ctx else ""
        _refuse(verb + error.format_message())
    except click.Abort:
        sys.exit(130)


def _refuse(message: str) -> None:
    click.echo(" ".join(message.split()), err=True)
    sys.exit(2)
