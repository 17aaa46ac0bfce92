"""The `sparsetrain` command. Exit code 0: done; 1: a run failed; 2: a mistake of the user, in one line; 75: saved, to
go on later; 130: stopped.

Everything heavy is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

import click

from sparsetrain.bench.verb import Verbs
from sparsetrain.bench.verbs import bench
from sparsetrain.config.errors import JobError
from sparsetrain.export.command import export
from sparsetrain.registry import KINDS, nearest


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
@click.option("--profile", default=None, metavar="FROM:STEPS", help="Torch's profiler on rank 0 for so many steps.")
def run(source: str, overrides: Any, dry_run: bool, as_json: bool, fresh: bool, against: Any, profile: Any) -> None:
    """Train JOB (a YAML file or a preset) with settings like train.steps=100."""
    from sparsetrain.config.load import load_job
    from sparsetrain.launch.run import Options, run_job, show_plan

    if profile is not None:
        begin, _, steps = profile.partition(":")
        if not (begin.isdecimal() and steps.isdecimal() and int(steps)):
            raise JobError(f"--profile: FROM:STEPS, say 10:5 (given {profile[:60]!r})")
        overrides = (*overrides, f"log.profile.begin={begin}", f"log.profile.steps={steps}")
    job = load_job(source, overrides)
    options = Options(fresh=fresh, as_json=as_json, against=tuple(against))
    sys.exit(show_plan(job, options) if dry_run else run_job(job, options))


@cli.command()
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--on", default=None, metavar="LAUNCHER", help="Short for cluster.launcher=LAUNCHER.")
@click.option("--dry-run", is_flag=True, help="Show the command and the files that it needs; start nothing.")
@click.option("--wait", is_flag=True, help="Submitted jobs: show the output to the end; Ctrl-C cancels Slurm's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def launch(source: str, overrides: tuple[str, ...], on: str | None, dry_run: bool, as_json: bool, wait: bool) -> None:
    """Give JOB to the launcher that it names; `sparsetrain list launcher` shows them all."""
    from sparsetrain.config.load import load_job
    from sparsetrain.launch.launch import launch_job, settings

    sys.exit(launch_job(load_job(source, settings(on, overrides)), dry_run, as_json, wait))


@cli.command()
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def node(source: str, overrides: tuple[str, ...]) -> None:
    """Train JOB by Ray on the nodes of a Slurm allocation: srun starts this once on each of them."""
    from sparsetrain.launch.node import node_verb

    sys.exit(node_verb(source, overrides))


@cli.command()
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--cluster", metavar="FILE", default=None, help="YAML: nodes, links, prices; default: 4 nodes, 10gbit.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of the cluster, like network.rate=1gbit.")
@click.option("--supports", metavar="FILE", default=None, help="Real choices of ranks, by bench supports.")
@click.option(
    "--what-if", "grid", is_flag=True, help="Also the quickest way for 2 to 64 nodes and links of five rates."
)
@click.option("--plot", "picture", metavar="FILE", default=None, help="Draw that grid; .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def plan(source: str, overrides: Any, cluster: Any, settings: Any, supports: Any, **more: Any) -> None:
    """Say what JOB would cost on a cluster: time and bytes of each way to exchange, memory, hours; and what to take."""
    from sparsetrain.config.load import load_job
    from sparsetrain.plan.verb import plan_job

    job = load_job(source, overrides)
    plan_job(job, cluster, settings, supports, more["grid"], more["picture"], more["as_json"])


@cli.command()
@click.argument("name")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def resume(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Continue run NAME (or a run folder) from its newest checkpoint."""
    from sparsetrain.launch.run import Options, resume_run

    sys.exit(resume_run(name, overrides, Options(as_json=as_json)))


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def status(run: str, as_json: bool) -> None:
    """Show how RUN (a name or a run folder) is: state, step, loss, and where it runs."""
    from sparsetrain.launch.standing import show_standing

    show_standing(run, as_json)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--once", is_flag=True, help="Show it once; also what happens where the output is no terminal.")
@click.option("--program", default="sparsetrain", show_default=True, help="What it is called on another host.")
def watch(run: str, once: bool, program: str) -> None:
    """Show RUN (a name, a run folder, or HOST:FOLDER by ssh) as it goes on: progress, losses, bytes, ranks, what
    happened last."""
    from sparsetrain.launch.watch import watch_run

    sys.exit(watch_run(run, once, program=program))


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--wait", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds until it has to end.")
def cancel(run: str, wait: float) -> None:
    """End RUN (a name or a run folder) as Ctrl-C would: a Slurm job, or a run on this machine."""
    from sparsetrain.launch.cancel import cancel_run

    sys.exit(cancel_run(run, wait))


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


@config.command("plot")
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", default=None, metavar="FILE", help="A name that ends in .png, .svg or .pdf; default: NAME.png.")
@click.option("--json", "as_json", is_flag=True, help="Print the curves on standard output and draw nothing.")
def config_plot(source: str, overrides: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Draw what JOB follows: sparsity of the masks, density of the exchange, learning rate, at each step."""
    from sparsetrain.config.load import load_job
    from sparsetrain.launch.preview import plot_job

    click.echo(plot_job(load_job(source, overrides), out, as_json))


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
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE[,VALUE]...]...")
@click.option("--seeds", type=click.IntRange(1), default=1, help="Runs of each combination, seeds from the job's on.")
@click.option("--name", default=None, help="Folder of the sweep in log.folder; default: the job's name and -sweep.")
@click.option("--against", type=click.Choice(["dense"]), default=None, help="Run the dense job for each seed, too.")
@click.option("--dry-run", is_flag=True, help="Check all jobs and list them; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
@click.option("--wandb", is_flag=True, help="Print the grid as a sweep of W&B, for its agents; start nothing.")
def sweep(source: str, overrides: Any, seeds: int, name: Any, against: Any, **more: bool) -> None:
    """Run JOB with all combinations of settings like masks.method=set,rigl masks.sparsity=0.9,0.98.

    One table and one figure come of it. The same command goes on with a sweep that was stopped, and another command
    with the same --name adds its runs to the table.
    """
    if more["wandb"]:
        from sparsetrain.launch.wandb_sweep import export

        click.echo(export(source, overrides, seeds, name), nl=False)
        return
    from sparsetrain.launch.sweep import Grid, run_grid, show_grid

    dry_run, as_json = more["dry_run"], more["as_json"]
    grid = Grid(source=source, overrides=overrides, seeds=seeds, name=name, with_dense=against == "dense")
    sys.exit(show_grid(grid, as_json) if dry_run else run_grid(grid, as_json))


@cli.command(context_settings={"show_default": True})
@click.argument("source", metavar="JOB")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--seed", type=int, default=0, help="Draws which faults happen when, and to whom.")
@click.option("--faults", default="kill,stop,cut", help="Out of kill, stop, cut, slow, leave, with commas.")
@click.option("--runs", type=click.IntRange(1), default=5, help="Runs with faults.")
@click.option("--count", type=click.IntRange(1), default=1, help="Faults in each run.")
@click.option("--every", type=click.FloatRange(0), default=0.0, help="A fault each so many seconds; not --count.")
@click.option("--restart", is_flag=True, help="Each run also without recovery in memory: from checkpoints alone.")
@click.option("--undisturbed", type=click.IntRange(1), default=3, help="Runs without any, before: what is normal.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def chaos(source: str, overrides: Any, faults: str, as_json: bool, **numbers: Any) -> None:
    """Run JOB again and again while its workers are killed, stopped and cut off; print what came of it."""
    from sparsetrain.launch.chaos import Plan, run_chaos

    kinds = tuple(kind.strip() for kind in faults.split(","))
    sys.exit(run_chaos(source, overrides, Plan(faults=kinds, **numbers), as_json))


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", default=None, metavar="FOLDER", help="Where the report goes; default: report/ of the last run.")
def report(runs: tuple[str, ...], out: str | None) -> None:
    """Compare runs (names or folders): a table, and a page with figures that needs nothing beside it."""
    from sparsetrain.launch.run import report_runs

    report_runs(runs, out)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option("--out", default=None, metavar="FILE", help="Default: trace.json in the run folder.")
def trace(run: str, out: str | None) -> None:
    """Merge what all ranks of RUN did (log.trace=true) into one trace for Perfetto."""
    from sparsetrain.launch.tracing import write_trace

    write_trace(run, out)


@cli.group()
def checkpoints() -> None:
    """Look after the checkpoints of a run, in its folder or behind its URL."""


@checkpoints.command("list")
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def checkpoints_list(run: str, as_json: bool) -> None:
    """List the checkpoints of RUN (a name or a run folder), complete or not."""
    from sparsetrain.launch.checkpoints import list_saved

    list_saved(run, as_json)


@checkpoints.command("verify")
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def checkpoints_verify(run: str, as_json: bool) -> None:
    """Read every complete checkpoint of RUN and name what is damaged; exit code 1 when something is."""
    from sparsetrain.launch.checkpoints import verify_saved

    sys.exit(verify_saved(run, as_json))


@checkpoints.command("prune")
@click.argument("run", metavar="RUN")
@click.option("--keep", type=click.IntRange(1), default=None, help="How many of the newest stay; default: the job's.")
@click.option("--best", type=click.IntRange(0), default=None, help="How many of the lowest loss stay beside them.")
@click.option("--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def checkpoints_prune(run: str, keep: int | None, best: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove the older complete checkpoints of RUN; damaged and unfinished ones stay."""
    from sparsetrain.launch.checkpoints import prune_saved

    prune_saved(run, keep, best, dry_run, as_json)


@cli.command()
@click.argument("words", nargs=-1, metavar="[JOB] [KEY=VALUE]...")
@click.option("--cluster", is_flag=True, help="Examine all nodes of the cluster that JOB names, or that ranks are on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
def doctor(words: tuple[str, ...], cluster: bool, as_json: bool) -> None:
    """Show what this machine offers: versions, cores, memory, disk, W&B mode, network, compiler.

    With --cluster: all nodes side by side, the ways between them, and what is wrong (exit code 1). It looks at the Ray
    cluster at cluster.address, or is one of the ranks that srun, mpiexec or torchrun has started.
    """
    if cluster:
        from sparsetrain.launch.ray_doctor import examine_cluster

        sys.exit(examine_cluster(words, as_json))
    if words:
        raise JobError(f"doctor: takes no JOB without --cluster (given {words[0]!r})")
    from sparsetrain.doctor.machine import examine

    facts = examine(os.environ)
    width = max(len(key) for key in facts)
    lines = [f"{key.ljust(width)}  {value}" for key, value in facts.items()]
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines))


cli.add_command(bench)
cli.add_command(export)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit; a user's mistake is one line on standard error and code 2."""
    try:
        here = os.getcwd()
    except OSError as error:
        _refuse(f"the folder that you are in is gone: {error.strerror}")
    # Like `python -m`: `module:Class` in a job may name a module in the current folder.
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
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


def _refuse(message: str) -> NoReturn:
    click.echo(" ".join(message.split()), err=True)
    sys.exit(2)
