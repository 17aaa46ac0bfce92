"""What the verbs of `sparsetrain bench` share: their group, their options, and how they refuse."""

from __future__ import annotations

import contextlib
import functools
import math
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


def plotting(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a picture that cannot be made before anything is measured."""
    from sparsetrain.bench import plot

    try:
        if value is not None:
            plot.check(value)
    except ValueError as error:
        raise JobError(f"bench {ctx.info_name}: --plot {value}: {error}") from error
    return value


def options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator that adds all of `options`."""
    return lambda function: functools.reduce(lambda made, option: option(made), reversed(options), function)


class Elements(click.ParamType):
    """A number of elements, also as 25e6."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it as an int; fail for what is none."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 1 <= number <= MOST:
            self.fail(f"{value} is no number of elements; allowed: 1 to {MOST}", param, ctx)
        return int(number)


MOST = 2**31 - 1  # places are 32 bits
ELEMENTS, TURNS, RANKS, HOSTS = (
    Elements(),
    click.IntRange(max=1_000_000),
    click.IntRange(max=1 << 20),
    click.IntRange(2, 512),
)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
output = options(
    as_json_option,
    click.option("--plot", "picture", metavar="FILE.svg", callback=plotting, help="Draw a chart; .svg or .png."),
)
links = options(
    click.option("--rate", metavar="RATE", help="Of each link: 100mbit (default), 1gbit, none, and the like."),
    click.option("--loopback", is_flag=True, help="Plain processes instead of network namespaces; needs no root."),
    click.option("--limit", type=float, default=1800.0, show_default=True, help="Seconds after which a rank is ended."),
)


@click.group(cls=Verbs)
def bench() -> None:
    """Measure on this machine: kernels, codes, and the exchange over links of a given rate."""


def ranks_of(
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
def refusing(verb: str) -> Generator[None]:
    """Say in one line why ranks cannot be measured like this; a rank that failed shows its last lines, code 1."""
    from sparsetrain.bench.hosts import HostsUnavailable
    from sparsetrain.bench.ranks import RankFailed

    try:
        yield
    except HostsUnavailable as error:
        raise JobError(f"{verb}: {error}; --loopback needs none") from error
    except MemoryError as error:
        raise JobError(f"{verb}: needs more memory than there is") from error
    except (OSError, ValueError, OverflowError) as error:
        raise JobError(f"{verb}: {' '.join(str(error).split())}") from error
    except RankFailed as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # torch has no class for it
            raise
        raise JobError(f"{verb}: needs more memory than there is") from error
