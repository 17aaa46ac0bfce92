"""The job: everything that one run depends on, as one tree of frozen dataclasses.

A part that has several implementations is a `Component`; its options live beside the class that reads them.
Units are in the names or in the comment beside the field. Fractions of a run are of `train.steps`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from sparsetrain.config.component import STRICT, Component, Named
from sparsetrain.config.numbers import (
    LARGEST,
    Above0,
    BelowOne,
    Count,
    Density,
    Few,
    Fraction,
    NotNegative,
    Point,
    Positive,
)

RegimeName = Literal["dense", "packed", "sparse", "lowrank"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The loop: how long, how much per step, and how the learning rate moves."""

    __pydantic_config__ = STRICT
    steps: Positive = 400
    batch_size: Positive = 16  # samples per worker and micro-batch
    accumulate: Positive = 1  # micro-batches per step
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, weights stay fp32
    clip: NotNegative = 1.0  # norm of the mean gradient; 0 switches it off
    warmup: Fraction = 0.05  # share of the steps in which the learning rate climbs
    final_learning_rate: Fraction = 0.1  # share of the peak at the last step (cosine)
    evaluate_every: Positive = 100  # steps
    evaluate_batches: Positive = 20  # per worker
    skip_limit: Positive = 20  # steps in a row without a finite gradient that end the run
    # A mean loss over so many times its recent mean: back to the last checkpoint, and other data; 0: never.
    spike: NotNegative = 0.0
    rollbacks: Count = 3  # of them at most
    # What stays when the number of workers changes: the samples of a step, or those of a worker; then the learning rate
    # goes with the number.
    resize: Literal["constant", "scaled"] = "constant"
    init_from: str | None = None  # safetensors file with pretrained weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """The optimizer that applies the mean weight difference when `exchange.every` > 1 (DiLoCo, arXiv 2311.08105)."""

    __pydantic_config__ = STRICT
    learning_rate: Above0 = 1.0
    momentum: BelowOne = 0.0
    nesterov: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """How gradients cross ranks. Densities are relative to the active coordinates of each bucket."""

    __pydantic_config__ = STRICT
    regime: Literal["dense", "packed", "sparse", "lowrank", "auto"] = "sparse"
    density: Density = 0.01
    rank: Few = 4  # lowrank: of the factors
    # auto: the regimes to choose from, steps to equal loss over those of dense by regime (1 where none is given), and
    # after how many exchanges without a mask update it looks again.
    allow: Annotated[tuple[RegimeName, ...], Field(min_length=1)] = ("dense", "packed", "sparse", "lowrank")
    steps_factor: dict[RegimeName, Above0] = dataclasses.field(default_factory=dict)
    replan: Positive = 200
    warmup: Fraction = 0.0  # share of the steps over which density falls to its value, and lowrank sends everything
    warmup_density: Density = 0.25  # where that fall begins (geometric)
    every: Positive = 1  # 1: exchange gradients each step; H: exchange weight differences each H steps
    outer: Outer = Outer()
    sparsifier: Annotated[Component, Named("sparsifier", "topk")] = "topk"  # pyrefly: ignore[bad-assignment]
    error_feedback: Annotated[Component, Named("error_feedback", "ef14")] = "ef14"  # pyrefly: ignore[bad-assignment]
    collective: Annotated[Component, Named("collective", "allgather")] = "allgather"  # pyrefly: ignore[bad-assignment]
    indices: Annotated[Component, Named("index_code", "auto")] = "auto"  # pyrefly: ignore[bad-assignment]
    # How sent values are written, in every regime; what rounding takes away stays in the residual.
    values: Annotated[Component, Named("value_code", "bf16")] = "bf16"  # pyrefly: ignore[bad-assignment]
    residual: Literal["fp32", "bf16", "int8"] = "fp32"  # how error feedback's state lies in memory
    overlap: bool = True  # buckets leave while backward still runs (CPU)
    bucket_elements: Positive = 1 << 22  # k is chosen per bucket; 1 makes each tensor a bucket of its own
    dense_below: Count = 4096  # tensors with fewer elements, and all 1-D ones, travel dense in one buffer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masks:
    """Which weights are kept, and how that changes. Points up to 1 (`every` below 1) are shares of the run, else
    steps."""

    __pydantic_config__ = STRICT
    method: Annotated[Component, Named("mask_method", "static")] = "static"  # pyrefly: ignore[bad-assignment]
    distribution: Annotated[Component, Named("distribution", "erk")] = "erk"  # pyrefly: ignore[bad-assignment]
    structure: Annotated[Component, Named("structure", "unstructured")] = "unstructured"  # pyrefly: ignore[bad-assignment]
    # When masks change and to what sparsity; null: the method's own schedule.
    schedule: Annotated[Component | None, Named("mask_schedule", optional=True)] = None
    # A penalty on the masked weights, added to their mean gradients; null: none.
    regulariser: Annotated[Component | None, Named("regulariser", optional=True)] = None
    sparsity: BelowOne = 0.9
    begin: Point = 0.0
    end: Point = 0.75  # the last update comes strictly before this point
    every: Annotated[Point, Field(gt=0)] = 100  # between updates
    exclude: tuple[str, ...] = ()  # parameter name patterns (fnmatch) that stay dense, and the words first and last
    rules: dict[str, BelowOne] = dataclasses.field(default_factory=dict)  # name pattern -> sparsity of its own
    rescale_init: bool = True  # divide initial masked weights by sqrt(density): keeps the variance of the outputs
    agreement: Literal["raise", "rank0"] = "raise"
    agreement_every: Positive = 100  # steps between two comparisons of all ranks' masks and weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers train: as many as there is room for, from `min` to `max`. A plain number means both."""

    __pydantic_config__ = STRICT
    min: Positive
    max: Positive

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")

    @property
    def varies(self) -> bool:
        """Return whether their number may change."""
        return self.min < self.max

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        whole = core_schema.plain_serializer_function_ser_schema(_workers_tree)
        return core_schema.no_info_before_validator_function(_workers, handler(source), serialization=whole)


def _workers(value: Any) -> Any:
    if isinstance(value, dict | Workers):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise PydanticCustomError("workers", "must be a whole number from 1 on, or a mapping with min and max")
    return {"min": value, "max": value}


def _workers_tree(workers: Workers) -> Any:
    return dataclasses.asdict(workers) if workers.varies else workers.max


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the workers run."""

    __pydantic_config__ = STRICT
    workers: Workers = Workers(min=2, max=2)
    cpus_per_worker: Above0 = 1.0
    gpus_per_worker: NotNegative = 0.0
    address: str | None = None  # an existing Ray cluster; None starts a local one
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    threads_per_worker: Count = 1  # torch threads; 0 keeps torch's own choice
    # Who starts the workers, for the verb launch; `run` starts them on Ray by itself.
    launcher: Annotated[Component, Named("launcher", "ray")] = "ray"  # pyrefly: ignore[bad-assignment]
    # Who moves bytes between ranks: gloo or nccl, or MPI for ranks that mpiexec (or srun with MPI) has started.
    transport: Literal["torch", "mpi"] = "torch"
    # Network interface for gloo, nccl and MPI; None: the one that routes to rank 0.
    interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]*$", max_length=40)] | None = None
    start_timeout: Above0 = 120.0  # seconds until all workers must be up
    # Seconds from a start on after which all ranks save and end (exit code 75); the same command goes on later.
    time_limit: Above0 | None = None
    first_timeout: Above0 = 300.0  # seconds without progress in a rank's first step
    collective_timeout: Above0 = 60.0  # seconds per collective, and without a sign of life or progress later on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """What happens when workers are lost (on Ray)."""

    __pydantic_config__ = STRICT
    memory: bool = True  # survivors keep their state; false: all begin anew from the last checkpoint
    crashes: Count = 20  # lost workers that a run survives; 0 ends it with the first one
    preemptions: Count = 1000  # workers that announced their end
    spares: Count = 0  # workers that wait, ready, to take a lost one's place
    backoff: NotNegative = 1.0  # seconds of waiting after the second loss in a row, doubled with each more
    backoff_limit: NotNegative = 60.0  # seconds
    calm: Positive = 100  # steps without a loss after which the waiting begins small again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Whole state of the run, written while training goes on; `resume` continues from the newest complete one."""

    __pydantic_config__ = STRICT
    every: Count = 0  # steps; 0 writes only the last one
    keep: Positive = 2  # of the newest
    best: Count = 0  # of the lowest eval/loss, beside the newest; of those that were evaluated at their step
    resume: bool = True
    url: str | None = None  # checkpoints go to url/name (s3://, file://, ...); None: into the run folder
    timeout: Above0 = 300.0  # seconds after which a part, or what is asked of a store, is given up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wandb:
    """Weights & Biases. `auto`: WANDB_MODE, else online when there is a key, else offline."""

    __pydantic_config__ = STRICT
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "sparsetrain"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    artifacts: tuple[Literal["model", "masks", "report"], ...] = ()  # uploaded at the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A window of torch's profiler on rank 0, into profile/ of the run folder."""

    __pydantic_config__ = STRICT
    begin: Count = 10  # steps that are finished before
    steps: Count = 0  # 0: no profile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What is recorded and where; the run folder is `folder/name`."""

    __pydantic_config__ = STRICT
    folder: str = "runs"
    every: Positive = 10  # steps
    wandb: Wandb = Wandb()
    tensorboard: bool = False  # event files in tensorboard/ of the run folder; needs the package
    trace: bool = False  # spans of all ranks, in trace/ of the run folder; `sparsetrain trace` merges them
    profile: Profile = Profile()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run. `seed` fixes weights, data order and masks; two equal jobs give equal bits on equal machines."""

    __pydantic_config__ = STRICT
    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    seed: Count = 0
    model: Annotated[Component, Named("model", "gpt")] = "gpt"  # pyrefly: ignore[bad-assignment]
    data: Annotated[Component, Named("data", "text")] = "text"  # pyrefly: ignore[bad-assignment]
    optimizer: Annotated[Component, Named("optimizer", "adamw")] = "adamw"  # pyrefly: ignore[bad-assignment]
    # Who holds weights and optimizer state, and takes the steps.
    engine: Annotated[Component, Named("engine", "torch")] = "torch"  # pyrefly: ignore[bad-assignment]
    # How masked layers multiply: as dense ones with zeros, or by their active weights alone, which are all that is held
    # then: in the way that is measured to be the fastest (auto), or in one by its name.
    compute: Literal["masked", "auto", "sparse", "block", "smaller", "two_four"] = "masked"
    train: Train = Train()
    exchange: Exchange = Exchange()
    masks: Masks | None = None  # None: dense weights
    cluster: Cluster = Cluster()
    recovery: Recovery = Recovery()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    baseline: tuple[str, ...] = ()  # settings of the run that `--against dense` adds: dense training has its own best


__all__ = [
    "Checkpoint",
    "Cluster",
    "Component",
    "Exchange",
    "Job",
    "Log",
    "Masks",
    "Outer",
    "Profile",
    "Recovery",
    "Train",
    "Wandb",
    "Workers",
]
