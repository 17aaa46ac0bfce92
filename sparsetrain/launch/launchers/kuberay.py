"""KubeRay: a RayJob on Kubernetes, with a pod for each worker, that ends when the run does."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import re
import shutil
from typing import Annotated, Any

from pydantic import Field

from sparsetrain.config.errors import JobError
from sparsetrain.config.job import Job
from sparsetrain.config.numbers import Count, Positive
from sparsetrain.launch import kube_job
from sparsetrain.launch.launchers.remote import blocks, for_ranks, job_text, run_words
from sparsetrain.launch.launchers.request import Request
from sparsetrain.launch.plan import File, LaunchPlan, ray_plan

Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9_.:/@-]*$", max_length=300)]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti)?$")]
Version = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+){1,2}[a-z0-9.]*$")]

GROUP = 1000  # of the image's user: it may write to a claim, whose root would be root's
RUNS, JOBS = "/runs", "/etc/sparsetrain"  # where the claim and the job file are in the pods
LONGEST = 47  # characters of a RayJob's name; KubeRay makes other names of it
ENDING_S = 300  # seconds for pods to start, and for ranks to save
KEPT_S = 600  # seconds for which a finished job's objects can still be looked at


class KubeRay:
    """A RayJob for the KubeRay operator: a pod for each worker, in Kueue's queue where there is one."""

    remote = True

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """`image` has sparsetrain in it. `pvc`: a claim that all pods mount at /runs. `queue`: a LocalQueue of Kueue.
        `memory` and `shm` (/dev/shm) are each pod's. `token_secret`: a Secret whose key auth_token is the cluster's
        token; by default KubeRay makes one up. All keys of `secrets` become variables of the pods. `deadline`: seconds.
        `retries`: new clusters that go on where a failed one was."""

        image: Image | None = None
        namespace: Label = "default"
        pvc: Label | None = None
        queue: Label | None = None
        memory: Quantity = "8Gi"
        shm: Quantity = "2Gi"
        token_secret: Label | None = None
        secrets: tuple[Label, ...] = ()
        deadline: Positive = 86_400
        retries: Count = 2
        ray_version: Version | None = None  # of the image; by default, that which is installed here

    def __init__(self, config: Config) -> None:
        self.config = config

    def plan(self, request: Request) -> LaunchPlan:
        """Return what would be applied. Raises JobError for a mistake in the job."""
        config, job = self.config, request.job
        self._refuse(job)
        kubectl = request.program("kubectl", "install it, and a context that reaches the cluster")
        path = f"{request.folder}/rayjob.yaml"
        return dataclasses.replace(
            ray_plan(for_ranks(job, address="auto"), request.env),
            launcher="kuberay",
            address=f"namespace {config.namespace}",
            nodes=job.cluster.workers.max,
            command=(kubectl, "apply", "-f", path),
            files=(File(path=path, text=blocks(self.config_map(job), self.ray_job(job))),),
        )

    def ready(self, plan: LaunchPlan) -> LaunchPlan:
        """Return the plan. Raises JobError where the cluster does not answer, or has a RayJob of this name."""
        kube_job.refuse_taken(plan.command[0], plan.name, self.config.namespace)
        return plan

    def follow(self, plan: LaunchPlan, as_json: bool, code: int) -> int:
        """Show what the job prints until it ends, and return the exit code: 0, or 1 where it has failed; that of
        kubectl where it could not be applied."""
        return code or kube_job.follow(plan.command[0], plan.name, self.config.namespace, as_json)

    def state(self, name: str) -> str:
        """Return how a RayJob of this name stands; see elsewhere.Handed. Raises JobError where nobody answers."""
        found = kube_job.status(self._kubectl(), name, self.config.namespace)
        if found is None:
            return "lost"
        if found[0] in kube_job.ENDED:
            return "finished" if found[1] == "SUCCEEDED" else "failed"
        return "running" if found[0] == "Running" else "pending"

    def end(self, name: str) -> None:
        """Remove a RayJob of this name, with its pods. Raises JobError where nobody answers."""
        kube_job.remove(self._kubectl(), name, self.config.namespace)

    def _kubectl(self) -> str:
        found = shutil.which("kubectl")
        if found is None:
            raise JobError("cluster.launcher: kubectl is not installed here")
        return found

    def config_map(self, job: Job) -> dict[str, Any]:
        """Return the manifest that holds the job file."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{job.name}-job", "namespace": self.config.namespace},
            "data": {"job.yaml": job_text(job)},
        }

    def ray_job(self, job: Job) -> dict[str, Any]:
        """Return the manifest of the RayJob. It is not suspended here: that is Kueue's to do."""
        config = self.config
        labels = {"labels": {"kueue.x-k8s.io/queue-name": config.queue}} if config.queue else {}
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": job.name, "namespace": config.namespace, **labels},
            "spec": {
                "entrypoint": run_words(f"{JOBS}/job.yaml", RUNS),
                "submissionMode": "K8sJobMode",
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": KEPT_S,
                "activeDeadlineSeconds": self._deadline(job.cluster.time_limit),
                "backoffLimit": config.retries,
                "rayClusterSpec": self._cluster(job),
            },
        }

    def _deadline(self, limit: float | None) -> int:
        """Return the seconds after which all pods end; ranks that have a limit of their own shall have saved then."""
        return self.config.deadline if limit is None else min(self.config.deadline, math.ceil(limit) + ENDING_S)

    def _cluster(self, job: Job) -> dict[str, Any]:
        """Return the RayCluster: a head that trains nothing, and as many workers as the job has, all at once."""
        cluster, count = job.cluster, job.cluster.workers.max + job.recovery.spares
        auth = {"mode": "token", **({"secretName": self.config.token_secret} if self.config.token_secret else {})}
        cpus, gpus = math.ceil(cluster.cpus_per_worker), math.ceil(cluster.gpus_per_worker)
        head = self._container("ray-head", {"cpu": 1})
        head["volumeMounts"].append({"name": "job", "mountPath": JOBS, "readOnly": True})
        worker = self._container("ray-worker", {"cpu": cpus, **({"nvidia.com/gpu": gpus} if gpus else {})})
        return {
            "rayVersion": self.config.ray_version or importlib.metadata.version("ray"),
            "authOptions": auth,  # KubeRay gives the token to all pods
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},
                "template": self._pod(head, [{"name": "job", "configMap": {"name": f"{job.name}-job"}}]),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": count,
                    "minReplicas": count,
                    "maxReplicas": count,
                    "rayStartParams": {"num-cpus": str(cpus)},
                    "template": self._pod(worker, []),
                }
            ],
        }

    def _container(self, name: str, resources: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        whole = {**{key: str(value) for key, value in resources.items()}, "memory": config.memory}
        variables = {"envFrom": [{"secretRef": {"name": secret}} for secret in config.secrets]}
        return {
            "name": name,
            "image": config.image,
            **(variables if config.secrets else {}),
            "resources": {"requests": whole, "limits": whole},
            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "runs", "mountPath": RUNS}],
        }

    def _pod(self, container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the template of a pod; without a claim its runs end with it, and checkpoints go elsewhere."""
        shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": self.config.shm}}
        kept = {"persistentVolumeClaim": {"claimName": self.config.pvc}} if self.config.pvc else {"emptyDir": {}}
        volumes = [shm, {"name": "runs", **kept}, *volumes]
        owned = {"securityContext": {"fsGroup": GROUP}}
        return {"spec": {"restartPolicy": "Never", **owned, "containers": [container], "volumes": volumes}}

    def _refuse(self, job: Job) -> None:
        config, cluster = self.config, job.cluster
        if config.image is None:
            raise JobError("cluster.launcher.image: name an image with sparsetrain in it (the Dockerfile builds one)")
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", job.name) or len(job.name) > LONGEST:
            raise JobError(
                f"name: {job.name!r} is no name for Kubernetes; allowed: up to {LONGEST} of a-z, 0-9 and -, a-z first"
            )
        if config.pvc is None and job.checkpoint.url is None:
            raise JobError("cluster.launcher.pvc: pods keep nothing; name a claim for the runs, or give checkpoint.url")
        if cluster.address:
            raise JobError("cluster.address: the job gets a cluster of its own; leave it out")
        if cluster.workers.varies:
            raise JobError("cluster.workers: kuberay starts a fixed number, all at once")
        if cluster.strategy == "STRICT_PACK" and cluster.workers.max > 1:
            raise JobError("cluster.strategy: STRICT_PACK wants one node, but every worker has a pod of its own")
