"""`regime: auto` for an exchange: the ways that its settings allow, and the planner with hands on its buckets."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsetrain.collective.world import World
from sparsetrain.config.job import Exchange, RegimeName
from sparsetrain.gradient.calibration import measure_network, probe
from sparsetrain.gradient.cost import Compute, Network, Stages
from sparsetrain.gradient.decision import Candidate
from sparsetrain.gradient.kept import Calibration, Kept
from sparsetrain.gradient.planner import Hands, Planner
from sparsetrain.gradient.regimes.choice import REGIMES
from sparsetrain.gradient.stages import StageBook

if TYPE_CHECKING:
    from sparsetrain.gradient.exchange import GradientExchange

SAME = 1.25  # by which rates differ at most where a kept calibration stands


def settings_of(config: Exchange, regime: RegimeName) -> Exchange:
    """Return the settings with a regime in the place of `auto`."""
    return dataclasses.replace(config, regime=regime)


def first(config: Exchange) -> Exchange:
    """Return the settings of the first allowed regime where they leave the choice to the planner, else themselves."""
    return settings_of(config, config.allow[0]) if config.regime == "auto" else config


def planner_of(exchange: GradientExchange, world: World, calibrations: pathlib.Path | None) -> Planner:
    """Return the planner of an exchange whose regime is `auto`; it starts from what the folder `calibrations` holds of
    this cluster, and keeps there what it measures. Collective: it counts the ranks of each node."""
    config = exchange.config
    transport = world.transport
    kept = None if calibrations is None else Kept(calibrations, world)

    def keep(network: Network) -> None:
        if kept is not None:
            kept.write(Calibration.of(network, book.known))

    book = StageBook(world, exchange.device, keep)

    def measure() -> Network:
        found = kept.read() if kept is not None and not book.known else None
        if found is not None:
            ratio = probe(transport, found.network).gather_rate / found.network.gather_rate
            if 1 / SAME < ratio < SAME:
                book.known += found.known
                return found.network
        network = measure_network(transport)
        keep(network)
        return network

    def stages(settings: Sequence[Exchange], network: Network) -> list[Stages]:
        return book.stages(exchange.channels, settings, network, config.density)

    hands = Hands(
        ways=lambda: _ways(exchange),
        measure=measure,
        probe=lambda before: probe(transport, before),
        stages=stages,
        adopt=exchange.set_regimes,
        sizes=lambda: [channel.size for channel in exchange.channels],
    )
    nodes = transport.gather_bytes(world.node.encode())
    here = nodes.count(world.node.encode())
    spare = min(1.0, max(0.0, len(os.sched_getaffinity(0)) / here - 1.0))
    compute = Compute(seconds=0.0, every=config.every, overlap=exchange.overlap, spare=spare)
    return Planner(hands, transport, compute, config.replan)


def _ways(exchange: GradientExchange) -> list[Candidate]:
    """Return a candidate for each allowed regime; packed only where something is masked, since else it is dense."""
    config, masked = exchange.config, any(channel.active is not None for channel in exchange.channels)
    return [
        Candidate(
            name=name,
            settings=(settings_of(config, name),) * len(exchange.channels),
            lossless=REGIMES[name].lossless,
            steps_factor=config.steps_factor.get(name, 1.0),
        )
        for name in config.allow
        if name != "packed" or masked or "dense" not in config.allow
    ]
