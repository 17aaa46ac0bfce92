"""What an earlier run between the same ranks has measured, so that a start need not measure all of it again.

One JSON file per cluster in a folder of rank 0's user. It only saves time: what the links do is asked again with one
message, and the planner tries what comes close in any case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
from typing import Annotated

import torch
from pydantic import Field, ValidationError

from sparsetrain.collective.world import World
from sparsetrain.config.component import STRICT, adapter
from sparsetrain.config.files import write_whole
from sparsetrain.gradient.calibration import FASTEST
from sparsetrain.gradient.cost import Network
from sparsetrain.gradient.stages import Costs

VERSION = 1
LARGEST = 1 << 20  # bytes of a file that is read
Seconds = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1e3, le=FASTEST, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Seconds per element of a bucket with `share` of its coordinates active. `settings` is text that is only compared:
    what a file names is never looked up."""

    __pydantic_config__ = STRICT
    settings: Annotated[str, Field(max_length=10_000)]
    share: Annotated[float, Field(ge=0, le=1)]
    select_s: Seconds
    merge_s: Seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """The network between the ranks, as gradient/cost.py has it, and the stages that were measured beside it."""

    __pydantic_config__ = STRICT
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    latency_s: Seconds
    reduce_rate: Rate
    gather_rate: Rate
    stages: tuple[Stage, ...] = ()

    @classmethod
    def of(cls, network: Network, known: list[tuple[str, float, Costs]]) -> Calibration:
        """Return what was measured."""
        stages = [
            Stage(settings=settings, share=share, select_s=costs.select_s, merge_s=costs.merge_s)
            for settings, share, costs in known
        ]
        return cls(**dataclasses.asdict(network), stages=tuple(stages))

    @property
    def network(self) -> Network:
        return Network(latency_s=self.latency_s, reduce_rate=self.reduce_rate, gather_rate=self.gather_rate)

    @property
    def known(self) -> list[tuple[str, float, Costs]]:
        """Return the stages as StageBook holds them."""
        return [(each.settings, each.share, Costs(each.select_s, each.merge_s)) for each in self.stages]


class Kept:
    """The file of one cluster: the same ranks on the same nodes, transport, device and torch. Collective to make."""

    def __init__(self, folder: pathlib.Path, world: World) -> None:
        self.world = world
        transport = world.transport
        own = f"{world.node} {platform.machine()} {os.cpu_count()} {transport.device.type} {torch.__version__}"
        ranks = [type(transport).__name__.encode(), *transport.gather_bytes(own.encode())]
        name = hashlib.sha256(b"\n".join(ranks)).hexdigest()[:16]
        self.path = folder / f"{name}.json"

    def read(self) -> Calibration | None:
        """Return what rank 0's file holds, on all ranks; None where there is none that can be read. Collective."""
        text = b""
        if self.world.rank == 0:
            with contextlib.suppress(OSError):
                if self.path.is_file():  # a pipe would keep us waiting
                    with self.path.open("rb") as file:
                        text = file.read(LARGEST)
        text = self.world.transport.gather_bytes(text)[0]
        try:
            return adapter(Calibration).validate_json(text)
        except (ValidationError, ValueError, RecursionError):
            return None

    def write(self, calibration: Calibration) -> None:
        """Put it in the place of what was there; rank 0 writes. A folder that cannot be written is no error."""
        if self.world.rank != 0:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(adapter(Calibration).dump_python(calibration, mode="json")))
