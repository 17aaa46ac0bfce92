"""Just the fields of a RayJob that we write, strictly: what is not here does not belong into a manifest of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$")]
Words = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name
    namespace: Name
    labels: Words = {}


class ConfigMap(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: Words


class SecretRef(Strict):
    secretRef: dict[Literal["name"], Name]


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern=r"^/")]
    readOnly: bool = False


class Resources(Strict):
    requests: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]


class Container(Strict):
    name: Name
    image: str
    envFrom: list[SecretRef] = []
    resources: Resources
    volumeMounts: list[Mount]


class EmptyDir(Strict):
    medium: Literal["Memory"] | None = None
    sizeLimit: Quantity | None = None


class Volume(Strict):
    name: Name
    emptyDir: EmptyDir | None = None
    persistentVolumeClaim: dict[Literal["claimName"], Name] | None = None
    configMap: dict[Literal["name"], Name] | None = None

    def model_post_init(self, context: Any) -> None:
        assert (self.emptyDir, self.persistentVolumeClaim, self.configMap).count(None) == 2


class PodSpec(Strict):
    restartPolicy: Literal["Never"]
    securityContext: dict[Literal["fsGroup"], int]
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume]

    def model_post_init(self, context: Any) -> None:
        assert {mount.name for mount in self.containers[0].volumeMounts} == {volume.name for volume in self.volumes}


class Pod(Strict):
    spec: PodSpec


class Head(Strict):
    rayStartParams: Words
    template: Pod


class Workers(Head):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int


class Auth(Strict):
    mode: Literal["token"]
    secretName: Name | None = None


class Cluster(Strict):
    rayVersion: str
    authOptions: Auth
    headGroupSpec: Head
    workerGroupSpecs: Annotated[list[Workers], Field(min_length=1, max_length=1)]


class Spec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode"]
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: int
    activeDeadlineSeconds: int
    backoffLimit: int
    rayClusterSpec: Cluster


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: Spec
