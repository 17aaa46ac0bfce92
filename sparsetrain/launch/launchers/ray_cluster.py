"""Ray's cluster launcher: `ray up` starts Ray on machines of yours, of AWS or of GCP, then the job runs on the head."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import socket
from typing import Annotated, Any, Literal

from pydantic import Field

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.load import to_yaml
from sparsetrain.config.numbers import Positive
from sparsetrain.launch.launchers.hosts import Host, refuse_unknown
from sparsetrain.launch.launchers.ray_job import INSTALL
from sparsetrain.launch.launchers.remote import Folder, blocks, for_ranks, run_words
from sparsetrain.launch.launchers.request import Request
from sparsetrain.launch.plan import File, LaunchPlan, ray_plan

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./:-]*$", max_length=300)]
Line = Annotated[str, Field(pattern=r"^[^\n]+$", max_length=2000)]
Mount = Annotated[str, Field(pattern=r"^[^:\n]+:(~/|/)[A-Za-z0-9_./-]+$", max_length=1000)]  # PATH HERE:PATH THERE
Cluster = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=40)]

FIELD = "cluster.launcher"
NEEDS = {
    "local": ("head_ip", "ssh_user"),
    "aws": ("region", "machine"),
    "gcp": ("region", "zone", "project", "machine", "image"),
}
TAKES = {
    "local": ("head_ip", "worker_ips"),
    "aws": ("region", "zone", "machine", "image", "disk", "nodes"),
    "gcp": ("region", "zone", "machine", "image", "disk", "nodes", "project"),
}
USERS = {"aws": "ubuntu", "gcp": "ubuntu"}
TOKEN = "~/.ray/auth_token"  # where Ray looks for the token on every machine, if RAY_AUTH_TOKEN does not hold it there
TOKENS = "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0"
IDLE_MINUTES = 60  # all nodes are wanted until the job has ended
BOOT_S = 900.0  # seconds until machines of a cloud are up
SSH_S = 10.0


class RayCluster:
    """A Ray cluster by `ray up`, on machines of yours, of AWS or of GCP; the job runs on its head."""

    remote = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`local`: head_ip, worker_ips, ssh_user. `aws`, `gcp`: so many `nodes`, each a `machine` with an `image` and
        `disk` GB. `mounts`: HERE:THERE, files and folders that all machines get before `setup`, commands for every
        machine, as to install sparsetrain. `token_file`: a file here that all machines get as ~/.ray/auth_token; by
        default they have a token already. `folder`: where runs lie on the head, from the home folder on. `python`: the
        interpreter there."""

        provider: Literal["local", "aws", "gcp"] = "local"
        cluster: Cluster = "sparsetrain"
        head_ip: Host | None = None
        worker_ips: tuple[Host, ...] = ()
        ssh_user: Word | None = None
        ssh_key: str | None = None
        region: Word | None = None
        zone: Word | None = None
        project: Word | None = None
        machine: Word | None = None
        image: Word | None = None
        disk: Positive = 100
        nodes: Positive = 1
        mounts: tuple[Mount, ...] = ()
        setup: tuple[Line, ...] = ()
        token_file: str | None = None
        folder: Folder = "runs"
        python: Folder = "python"

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be started. Raises JobError for a mistake in the job."""
        config, job = self.config, request.job
        each = self._refuse(request)
        ray = request.program("ray", INSTALL)
        for program in ("ssh", "rsync"):
            request.program(program, "Ray reaches the machines by ssh and rsync")
        path, text = f"{request.folder}/cluster.yaml", f"{request.folder}/cluster_job.yaml"
        timeout = max(job.cluster.start_timeout, BOOT_S)
        remote = for_ranks(job, address="auto", start_timeout=timeout)
        there = f"sparsetrain-{job.name}.yaml"
        words = run_words(f'"$HOME"/{there}', config.folder, config.python)
        return dataclasses.replace(
            ray_plan(remote, request.env),
            launcher="ray_cluster",
            address=config.head_ip or f"{config.provider} {config.region}",
            nodes=self.count,
            # A cluster that is up keeps its Ray, and what runs on it.
            first=((ray, "up", "-y", "--no-restart", path), (ray, "rsync-up", path, text, f"~/{there}")),
            command=(ray, "exec", path, f"{TOKENS}; exec {words}"),
            files=(File(path=path, text=blocks(self.tree(job, each))), File(path=text, text=to_yaml(remote))),
        )

    def ready(self, plan: LaunchPlan) -> LaunchPlan:
        """Return the plan. Raises JobError where a file is missing or a machine of ours does not answer."""
        config = self.config
        for field, path in (("token_file", config.token_file), ("ssh_key", config.ssh_key)):
            if path and not pathlib.Path(path).expanduser().is_file():
                raise JobError(f"{FIELD}.{field}: there is no file {path}")
        for mount in config.mounts:
            if not pathlib.Path(mount.rpartition(":")[0]).expanduser().exists():
                raise JobError(f"{FIELD}.mounts: there is no {mount.rpartition(':')[0]}")
        for host in filter(None, (config.head_ip, *config.worker_ips)):
            try:
                socket.create_connection((host, 22), timeout=SSH_S).close()
            except OSError as error:
                raise JobError(f"{FIELD}: {host} does not answer to ssh: {error}") from None
        return plan

    @property
    def count(self) -> int:
        """The machines, the head among them."""
        return 1 + len(self.config.worker_ips) if self.config.provider == "local" else self.config.nodes

    def tree(self, job: Job, each: int) -> dict[str, Any]:
        """Return the configuration for `ray up`, with `each` workers of the job on every machine."""
        config = self.config
        # It ends all that Ray runs on a machine: not what others, or you, have started on one that is not the cloud's.
        stop = [] if config.provider == "local" else ["ray stop"]
        auth = {"ssh_user": config.ssh_user or USERS.get(config.provider)}
        if config.ssh_key:
            auth["ssh_private_key"] = config.ssh_key
        return {
            "cluster_name": config.cluster,
            "max_workers": self.count - 1,
            "idle_timeout_minutes": IDLE_MINUTES,
            "provider": self._provider(),
            "auth": auth,
            **({} if config.provider == "local" else self._types(job, each)),
            "file_mounts": self._mounts(),
            "setup_commands": list(config.setup),
            # Every command has a shell of its own. Ray finds the token on the machine.
            "head_start_ray_commands": [
                *stop,
                f"{TOKENS}; ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml",
            ],
            "worker_start_ray_commands": [*stop, f"{TOKENS}; ray start --address=$RAY_HEAD_IP:6379"],
        }

    def _provider(self) -> dict[str, Any]:
        config = self.config
        if config.provider == "local":
            return {"type": "local", "head_ip": config.head_ip, "worker_ips": list(config.worker_ips)}
        made = {"type": config.provider, "region": config.region}
        if config.zone:
            made["availability_zone"] = config.zone
        if config.project:
            made["project_id"] = config.project
        return made

    def _mounts(self) -> dict[str, str]:
        """Return the path here of whatever all machines get, by the path there."""
        found = {there: here for here, _, there in (mount.rpartition(":") for mount in self.config.mounts)}
        return {**found, TOKEN: self.config.token_file} if self.config.token_file else found

    def _types(self, job: Job, each: int) -> dict[str, Any]:
        """Return the kinds of machines: the head, which trains too, and the others, all of which are always wanted."""
        cluster = job.cluster
        resources = {"CPU": math.ceil(each * cluster.cpus_per_worker)}
        if gpus := math.ceil(each * cluster.gpus_per_worker):
            resources["GPU"] = gpus
        kind: dict[str, Any] = {"resources": resources, "node_config": self._machine(bool(gpus))}
        types, others = {"head": kind}, self.count - 1
        if others:
            types["worker"] = {"min_workers": others, "max_workers": others, **kind}
        return {"head_node_type": "head", "available_node_types": types}

    def _machine(self, gpus: bool) -> dict[str, Any]:
        config = self.config
        if config.provider == "aws":
            disk = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": config.disk}}]
            image = {"ImageId": config.image} if config.image else {}  # else Ray's own choice for the region
            return {"InstanceType": config.machine, **image, "BlockDeviceMappings": disk}
        start = {"diskSizeGb": config.disk, "sourceImage": config.image}
        disk = [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": start}]
        # GCP moves no machine with a GPU to another host.
        still = {"scheduling": [{"onHostMaintenance": "TERMINATE"}]} if gpus else {}
        return {"machineType": config.machine, "disks": disk, **still}

    def _refuse(self, request: Request) -> int:
        """Return the workers of a machine. Raises JobError where options are missing, or another provider's."""
        config, job = self.config, request.job
        needs, takes = NEEDS[config.provider], TAKES[config.provider]
        default = type(config)()
        for field in needs:
            if not getattr(config, field):
                raise JobError(f"{FIELD}.{field}: is missing; {config.provider} needs {', '.join(needs)}")
        for field in sorted({field for fields in TAKES.values() for field in fields} - set(takes)):
            if getattr(config, field) != getattr(default, field):
                raise JobError(f"{FIELD}.{field}: is not for {config.provider}; allowed: {', '.join(takes)}")
        if config.provider == "aws" and not (config.image or config.setup):
            raise JobError(
                f"{FIELD}.image: is missing; Ray's own choice for AWS has neither Ray nor sparsetrain: give an image "
                f"that has both, or {FIELD}.setup with the commands that install them"
            )
        if job.cluster.address:
            raise JobError("cluster.address: the job gets a cluster of its own; leave it out")
        hosts = tuple(filter(None, (config.head_ip, *config.worker_ips)))
        if len(set(hosts)) < len(hosts):
            raise JobError(f"{FIELD}.worker_ips: a machine is named twice")
        refuse_unknown(hosts, FIELD, request)
        return request.per_node(self.count, f"{FIELD}.{'worker_ips' if config.provider == 'local' else 'nodes'}")
