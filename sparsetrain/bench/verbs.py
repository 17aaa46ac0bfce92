"""The verbs of `sparsetrain bench`: each measures on this machine and prints a table, a JSON document, a chart."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import click

from sparsetrain.config.errors import JobError
from sparsetrain.registry import nearest

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


def _plotting(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a picture that cannot be made before anything is measured."""
    from sparsetrain.bench import plot

    try:
        if value is not None:
            plot.check(value)
    except ValueError as error:
        raise JobError(f"bench {ctx.info_name}: --plot {value}: {error}") from error
    return value


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator that adds all of `options`."""
    return lambda function: functools.reduce(lambda made, option: option(made), reversed(options), function)


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
_output = _options(
    _json,
    click.option("--plot", "picture", metavar="FILE.svg", callback=_plotting, help="Draw a chart; .svg or .png."),
)
_links = _options(
    click.option("--rate", metavar="RATE", help="Of each link: 100mbit (default), 1gbit, none, and the like."),
    click.option("--loopback", is_flag=True, help="Plain processes instead of network namespaces; needs no root."),
    click.option("--limit", type=float, default=1800.0, show_default=True, help="Seconds after which a rank is ended."),
)


RATES = ("none", "1gbit", "200mbit", "50mbit")


@click.group(cls=Verbs)
def bench() -> None:
    """Measure on this machine: kernels, codes, and the exchange over links of a given rate."""


@bench.command("select")
@click.option("--size", "sizes", type=float, multiple=True, default=(1e7,), show_default=True, help="Elements.")
@click.option("--density", "densities", type=float, multiple=True, default=(0.001, 0.01, 0.1), show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="Cores that a kernel may take.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each candidate.")
@_output
def bench_select(
    sizes: tuple[float, ...],
    densities: tuple[float, ...],
    threads: int,
    rounds: int,
    as_json: bool,
    picture: str | None,
) -> None:
    """Time selection with error feedback against one memory pass and against torch.topk."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.select import COLUMNS, measure
    from sparsetrain.bench.table import render

    try:
        rows = measure([int(size) for size in sizes], densities, threads, rounds)
    except (ValueError, OverflowError) as error:
        raise JobError(f"bench select: {error}") from error
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))
    if picture:
        plot.select(rows, picture)


@bench.command("codec")
@click.option("--density", "densities", type=float, multiple=True, default=(0.001, 0.01, 0.1), show_default=True)
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each code.")
@_output
def bench_codec(densities: tuple[float, ...], rounds: int, as_json: bool, picture: str | None) -> None:
    """Measure every code on a real gradient: bits per entry, value error, throughput."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.codec import COLUMNS, measure
    from sparsetrain.bench.table import render

    try:
        rows = measure(densities, rounds)
    except ValueError as error:
        raise JobError(f"bench codec: {error}") from error
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))
    if picture:
        plot.codec(rows, picture)


@bench.command("exchange")
@click.option("--hosts", type=click.IntRange(0), default=4, show_default=True, help="Ranks; 0: 4 on loopback.")
@_links
@click.option("--size", type=float, default=25e6, show_default=True, help="Elements of the gradient.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--transport", default="gloo", show_default=True, help="gloo, or mpi (with --loopback).")
@_output
def bench_exchange(
    hosts: int,
    rate: str | None,
    size: float,
    density: float,
    rounds: int,
    loopback: bool,
    transport: str,
    limit: float,
    as_json: bool,
    picture: str | None,
) -> None:
    """Time the mean of a gradient over several hosts: dense, naive, PowerSGD, and ours."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.exchange import Plan, measure, show

    with _refusing("bench exchange"):
        ranks = _ranks(hosts, rate, loopback, limit, 4, transport)
        result = measure(ranks, Plan(size=int(size), density=density, rounds=rounds))
    click.echo(json.dumps(result, indent=2) if as_json else show(result))
    if picture:
        plot.exchange(result["rows"], picture)


@bench.command("step")
@click.option("--hosts", type=click.IntRange(0), default=2, show_default=True, help="Ranks; 0: 2 on loopback.")
@_links
@click.option("--layers", type=int, default=6, show_default=True, help="Of the GPT.")
@click.option("--width", type=int, default=320, show_default=True, help="Of its layers.")
@click.option("--vocabulary", type=int, default=8192, show_default=True, help="Tokens that it knows.")
@click.option("--context", type=int, default=128, show_default=True, help="Tokens of a sequence.")
@click.option("--batch", type=int, default=4, show_default=True, help="Sequences a rank and step.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries sent a step.")
@click.option("--steps", type=int, default=10, show_default=True, help="Steps in a turn.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each candidate.")
@_output
def bench_step(
    hosts: int,
    rate: str | None,
    layers: int,
    width: int,
    vocabulary: int,
    context: int,
    batch: int,
    density: float,
    steps: int,
    rounds: int,
    loopback: bool,
    limit: float,
    as_json: bool,
    picture: str | None,
) -> None:
    """Time whole training steps of a GPT: compute only, DDP with torch's hooks, and ours."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.step import Plan, measure, show

    with _refusing("bench step"):
        ranks = _ranks(hosts, rate, loopback, limit, 2)
        plan = Plan(
            layers=layers,
            width=width,
            vocabulary=vocabulary,
            context=context,
            batch=batch,
            density=density,
            steps=steps,
            rounds=rounds,
        )
        result = measure(ranks, plan)
    click.echo(json.dumps(result, indent=2) if as_json else show(result))
    if picture:
        plot.step(result["rows"], picture)


@bench.command("auto")
@click.option("--hosts", type=click.IntRange(2), multiple=True, default=(2, 4), show_default=True, help="Ranks.")
@click.option("--rate", "rates", multiple=True, help=f"Default: {', '.join(RATES)}.")
@click.option("--then", help="Rate that the links change to when the planner has settled.")
@click.option("--sparsity", "sparsities", type=float, multiple=True, default=(0.0, 0.9), show_default=True)
@click.option("--loopback", is_flag=True, help="Plain processes instead of network namespaces; needs no root.")
@click.option("--layers", type=int, default=4, show_default=True, help="Of the GPT, 128 wide.")
@click.option("--batch", type=int, default=8, show_default=True, help="Sequences a rank and step.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that sparse sends.")
@click.option("--rank", type=int, default=4, show_default=True, help="Of lowrank's factors.")
@click.option("--factor", type=float, default=1.0, show_default=True, help="Steps of lossy regimes to equal loss.")
@click.option("--steps", type=int, default=5, show_default=True, help="Steps in a turn.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of each candidate.")
@click.option("--limit", type=float, default=600.0, show_default=True, help="Seconds after which a rank is ended.")
@_json
def bench_auto(
    hosts: tuple[int, ...],
    rates: tuple[str, ...],
    then: str | None,
    sparsities: tuple[float, ...],
    loopback: bool,
    layers: int,
    batch: int,
    density: float,
    rank: int,
    factor: float,
    steps: int,
    rounds: int,
    limit: float,
    as_json: bool,
) -> None:
    """Compare what the planner takes with the best regime, over links of several rates."""
    from sparsetrain.bench.auto import Plan, cells, measure, show

    with _refusing("bench auto"):
        plans = [
            (
                _ranks(count, rate, loopback, limit, 2, then=then),
                Plan(
                    layers=layers,
                    batch=batch,
                    density=density,
                    rank=rank,
                    factor=factor,
                    sparsity=sparsity,
                    steps=steps,
                    rounds=rounds,
                ),
            )
            for rate, count, sparsity in cells(rates or (("none",) if loopback else RATES), hosts, sparsities)
        ]
        rows = []
        for ranks, plan in plans:
            rows.append(measure(ranks, plan))
            click.echo(
                f"[{len(rows)}/{len(plans)}] {ranks.describe()}: {rows[-1]['took']}, {rows[-1]['why']}", err=True
            )
    click.echo(json.dumps(rows, indent=2) if as_json else show(rows, plans[0][1]))


@bench.command("growth")
@click.option("--ranks", type=click.IntRange(2), default=4, show_default=True, help="Processes on loopback.")
@click.option("--steps", type=int, default=400, show_default=True, help="Length of the run.")
@click.option("--every", type=int, default=20, show_default=True, help="Steps between mask updates.")
@click.option("--points", type=int, default=5, show_default=True, help="Updates that are looked at.")
@click.option("--sparsity", type=float, default=0.9, show_default=True)
@click.option("--batch", "batches", type=int, multiple=True, default=(4, 16, 64), show_default=True)
@click.option("--share", "shares", type=float, multiple=True, default=(0.02, 0.03, 0.045, 0.06), show_default=True)
@click.option("--limit", type=float, default=1800.0, show_default=True, help="Seconds after which a rank is ended.")
@_json
def bench_growth(
    ranks: int,
    steps: int,
    every: int,
    points: int,
    sparsity: float,
    batches: tuple[int, ...],
    shares: tuple[float, ...],
    limit: float,
    as_json: bool,
) -> None:
    """Compare what RigL grows from candidates with what the dense mean gradient grows, and the bytes of both."""
    from sparsetrain.bench.growth import Plan, measure, show

    with _refusing("bench growth"):
        plan = Plan(steps=steps, every=every, points=points, sparsity=sparsity, batches=batches, shares=shares)
        result = measure(_ranks(ranks, None, True, limit, 4), plan)
    click.echo(json.dumps(result, indent=2) if as_json else show(result))


@bench.command("volume")
@click.option("--ranks", type=int, multiple=True, default=(2, 4, 8, 16, 32, 64), show_default=True)
@click.option("--size", type=float, default=1e6, show_default=True, help="Elements of the gradient.")
@click.option("--density", type=float, default=0.01, show_default=True, help="Share of the entries that is sent.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Steps that count, after three that do not.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the gradients.")
@_output
def bench_volume(
    ranks: tuple[int, ...], size: float, density: float, rounds: int, seed: int, as_json: bool, picture: str | None
) -> None:
    """Count what each collective puts on the wire as ranks are added; all ranks in this process, nothing timed."""
    from sparsetrain.bench import plot
    from sparsetrain.bench.table import render
    from sparsetrain.bench.volume import COLUMNS, Plan, measure

    try:
        rows = measure(Plan(ranks=ranks, size=int(size), density=density, rounds=rounds, seed=seed))
    except (ValueError, OverflowError) as error:
        raise JobError(f"bench volume: {error}") from error
    click.echo(json.dumps(rows, indent=2) if as_json else render(rows, COLUMNS))
    if picture:
        plot.volume(rows, picture)


def _ranks(
    hosts: int,
    rate: str | None,
    loopback: bool,
    limit: float,
    default: int,
    transport: str = "gloo",
    then: str | None = None,
) -> Ranks:
    from sparsetrain.bench.ranks import Ranks

    loopback = loopback or hosts == 0
    return Ranks(
        hosts=hosts or default,
        rate=rate or ("none" if loopback else "100mbit"),
        loopback=loopback,
        limit_s=limit,
        transport=transport,
        then=then,
    )


@contextlib.contextmanager
def _refusing(verb: str) -> Generator[None]:
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
