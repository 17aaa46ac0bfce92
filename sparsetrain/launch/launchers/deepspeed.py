"""DeepSpeed's launcher, without Ray: on this machine, or on the hosts of a hostfile."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sparsetrain.config.errors import JobError
from sparsetrain.config.numbers import Count
from sparsetrain.launch.launchers.hosts import Host, refuse_closed, refuse_unknown
from sparsetrain.launch.launchers.request import Request
from sparsetrain.launch.plan import File, LaunchPlan

Slots = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(:[1-9][0-9]{0,3})?$", max_length=253)]
Port = Annotated[int, Field(ge=1024, le=65535)]

HOSTS = "cluster.launcher.hosts"
PORTS = range(20_000, 30_000)  # below those that systems give out by themselves
# What each way to reach the hosts needs here. DeepSpeed's own `mpich` cannot start a module, its `slurm` neither.
BACKENDS = {
    "pdsh": ("pdsh", "install pdsh, or take cluster.launcher.launcher=openmpi"),
    "openmpi": ("ompi_info", "install Open MPI, or take cluster.launcher.launcher=pdsh"),
    "impi": ("mpirun", "load Intel MPI, or take cluster.launcher.launcher=pdsh"),
}


class DeepSpeed:
    """Ranks under DeepSpeed's launcher, here or on hosts that are reached by ssh."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`hosts`: NAME or NAME:SLOTS, none: this machine. `no_ssh`: the command is given on every host by hand, each
        with its `node_rank`. `master`: an address of the first host. `port`: of rank 0; by default it follows from the
        job's name."""

        hosts: tuple[Slots, ...] = ()
        launcher: Literal["pdsh", "openmpi", "impi"] = "pdsh"
        no_ssh: bool = False
        node_rank: Count = 0
        master: Host | None = None
        port: Port | None = None

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be started. Raises JobError for a mistake in the job."""
        job = request.job
        slots = self.slots(request)
        program = request.program("deepspeed", 'pip install "sparsetrain[deepspeed]" brings it')
        options = ["--hostfile", f"{request.folder}/hostfile"]
        options += self._hosts(request, slots) if self.config.hosts else self._alone(request, slots)
        port = self.config.port or port_of(job.name)
        # The worker reads LOCAL_RANK; --local_rank=N would be taken for a setting of the job.
        options += ["--master_port", str(port), "--no_local_rank", "--log_level", "warning"]
        command = (program, *options, "--module", "sparsetrain.worker", request.path)
        file = File(path=f"{request.folder}/hostfile", text=hostfile(slots))
        return request.plan("deepspeed", len(slots), command, (file,))

    def ready(self, plan: LaunchPlan) -> LaunchPlan:
        """Return the plan. Raises JobError where a host is not reached by ssh without a password."""
        for host in () if self.config.no_ssh else self.config.hosts:
            refuse_closed(host.partition(":")[0], HOSTS)
        return plan

    def slots(self, request: Request) -> dict[str, int]:
        """Return the ranks of each host. Raises JobError where they are not those of the job."""
        pairs = [host.partition(":")[::2] for host in self.config.hosts] or [("localhost", "")]
        names = [host for host, _ in pairs]
        given = [int(slots) for _, slots in pairs if slots]
        total = request.job.cluster.workers.max
        if twice := [host for number, host in enumerate(names) if host in names[:number]]:
            raise JobError(f"{HOSTS}: {twice[0]!r} is named twice")
        if given and len(given) < len(pairs):
            raise JobError(f"{HOSTS}: give slots for all hosts or for none, as in node0:4")
        each = request.per_node(1 if given else len(pairs), HOSTS)
        if given and sum(given) != total:
            raise JobError(f"{HOSTS}: their slots are {sum(given)}, cluster.workers is {total}")
        if self.config.launcher == "impi" and len(set(given)) > 1:
            raise JobError(f"{HOSTS}: impi takes as many slots on every host (given {', '.join(map(str, given))})")
        refuse_unknown(tuple(names), HOSTS, request)
        return {host: int(slots or each) for host, slots in pairs}

    def _alone(self, request: Request, slots: dict[str, int]) -> list[str]:
        """Return the options for this machine. A hostfile of our own, so that no /job/hostfile is taken instead."""
        config = self.config
        if config.no_ssh or config.node_rank:
            raise JobError(f"{HOSTS}: name all hosts, the first one first, for cluster.launcher.no_ssh and node_rank")
        devices = visible(request, slots["localhost"])
        if devices:  # slots are numbers of devices: so many that the largest is one of them
            slots["localhost"] = max(devices) + 1
        chosen = ["--include", f"localhost:{','.join(map(str, devices))}"] if devices else []
        return [*chosen, "--no_ssh_check", "--master_addr", config.master or "127.0.0.1"]

    def _hosts(self, request: Request, slots: dict[str, int]) -> list[str]:
        config, first = self.config, next(iter(slots))
        if config.no_ssh:
            if config.node_rank >= len(slots):
                raise JobError(f"cluster.launcher.node_rank: {config.node_rank} of {len(slots)} hosts, counted from 0")
            return ["--no_ssh", "--node_rank", str(config.node_rank), "--master_addr", config.master or first]
        if config.node_rank:
            raise JobError("cluster.launcher.node_rank: is for cluster.launcher.no_ssh; by ssh every host gets its own")
        request.program(*BACKENDS[config.launcher])
        # A single host would be taken for this one.
        options = ["--force_multi", "--launcher", config.launcher]
        if config.master:
            options += ["--master_addr", config.master]
        interface = request.job.cluster.interface
        if config.launcher == "openmpi" and interface:
            options += ["--launcher_args", f"--mca btl_tcp_if_include {interface}"]  # DeepSpeed would say eth0
        return options


def hostfile(slots: Mapping[str, int]) -> str:
    """Return a hostfile as DeepSpeed reads it."""
    return "".join(f"{host} slots={count}\n" for host, count in slots.items())


def port_of(name: str) -> int:
    """Return the port of rank 0 of a run: the same on all hosts, another for most other runs."""
    return PORTS[int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % len(PORTS)]


def visible(request: Request, workers: int) -> list[int]:
    """Return the devices that CUDA_VISIBLE_DEVICES leaves to the workers, none where it does not matter; DeepSpeed
    would pass over it. Raises JobError where they are too few."""
    named = request.env.get("CUDA_VISIBLE_DEVICES", "")
    if not named or not request.job.cluster.gpus_per_worker:
        return []
    if not all(word.strip().isdecimal() for word in named.split(",")):
        raise JobError(f"CUDA_VISIBLE_DEVICES: DeepSpeed takes numbers of devices only (given {named!r})")
    devices = [int(word) for word in named.split(",")]
    if len(devices) < workers:
        raise JobError(f"CUDA_VISIBLE_DEVICES: {named} are fewer devices than cluster.workers ({workers})")
    return devices[:workers]
