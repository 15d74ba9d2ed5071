"""What the kubelet makes of a rendered pod: volumes as directories, references as values, a container to run.

It goes by the manifest alone. Fields that it does not know are errors, so that nothing the chart says is
passed over in silence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.container import Container, Mount
from tests.support.image import Image, machine_directories


class UnknownFieldError(Exception):
    """The manifest says something that this kubelet does not act upon."""


@dataclass
class Surroundings:
    """What of the cluster and the node a pod comes to see.

    directory: an empty one for the pod's volumes. dns_server: the cluster's. paths: what stands for paths
    of the node. config_maps and trust_bundles: the content of what the pod may refer to, file by file. token:
    a service account's token.
    """

    directory: Path
    pod_name: str
    namespace: str
    node_name: str
    pod_ip: str
    dns_server: str
    token: str = "a-service-account-token"
    paths: Mapping[str, Path] = field(default_factory=dict)
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    trust_bundles: Mapping[str, str] = field(default_factory=dict)


def container_of(pod: Mapping[str, Any], image: Image, here: Surroundings) -> Container:
    """The container of a pod, of which it may have one only; its volumes exist afterwards."""
    _only(
        pod,
        "containers",
        "volumes",
        "serviceAccountName",
        # These concern where the pod runs, and for how long after a SIGTERM.
        *("priorityClassName", "nodeSelector", "tolerations", "affinity", "terminationGracePeriodSeconds"),
    )
    [container] = pod["containers"]
    _only(
        container,
        *("name", "image", "args", "env", "securityContext", "volumeMounts"),
        *("imagePullPolicy", "ports", "readinessProbe", "resources"),
    )
    security = container["securityContext"]
    _only(
        security,
        *("capabilities", "privileged", "readOnlyRootFilesystem", "runAsUser", "runAsGroup"),
        *("runAsNonRoot", "allowPrivilegeEscalation", "seLinuxOptions"),
    )
    if security["privileged"] or security["capabilities"]["drop"] != ["ALL"]:
        raise UnknownFieldError(f"another security context than expected: {security}")
    here.directory.mkdir(parents=True, exist_ok=True)
    volumes = {volume["name"]: _volume(volume, here) for volume in pod["volumes"]}
    scratch = here.directory / "scratch"
    scratch.mkdir()
    writable = here.directory / "writable"
    return Container(
        command=[*image.entrypoint, *container["args"]],
        layers=image.roots,
        machine=machine_directories(),
        scratch=str(scratch),
        changes=None if security["readOnlyRootFilesystem"] else str(writable),
        environment=image.environment | environment(pod, here),
        directory=image.directory,
        mounts=[
            *_name_files(here),
            *(_mount(mount, *volumes[mount["name"]]) for mount in container["volumeMounts"]),
        ],
        user=security["runAsUser"],
        group=security["runAsGroup"],
        capabilities=security["capabilities"]["add"],
    )


def _name_files(here: Surroundings) -> list[Mount]:
    """/etc/hosts and /etc/resolv.conf as the kubelet writes them for a pod with the usual DNS policy."""
    suffix = "svc.cluster.local"
    texts = {
        "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{here.pod_ip}\t{here.pod_name}\n",
        "resolv.conf": f"search {here.namespace}.{suffix} {suffix} cluster.local\n"
        f"nameserver {here.dns_server}\noptions ndots:5\n",
    }
    for name, text in texts.items():
        (here.directory / name).write_text(text)
    return [Mount(str(here.directory / name), f"/etc/{name}") for name in texts]


def _mount(mount: Mapping[str, Any], source: Path, read_only: bool) -> Mount:
    _only(mount, "name", "mountPath", "readOnly")
    return Mount(str(source), mount["mountPath"], read_only=read_only or mount.get("readOnly", False))


def _only(item: Mapping[str, Any], *known: str) -> None:
    if unknown := item.keys() - set(known):
        raise UnknownFieldError(f"unknown: {sorted(unknown)}")


def environment(pod: Mapping[str, Any], here: Surroundings) -> dict[str, str]:
    """The container's variables with all references resolved; of two with one name the latter counts."""
    fields = {
        "metadata.name": here.pod_name,
        "metadata.namespace": here.namespace,
        "spec.nodeName": here.node_name,
        "status.podIP": here.pod_ip,
        "spec.serviceAccountName": pod["serviceAccountName"],
    }
    [container] = pod["containers"]
    # These every container has, from the runtime and for the API server's service.
    variables = {
        "HOSTNAME": here.pod_name,
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }
    for entry in container["env"]:
        match entry:
            case {"name": name, "value": str(value)}:
                variables[name] = value
            case {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}:
                variables[name] = fields[path]
            case {
                "name": name,
                "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}},
            }:
                if "limits" in container.get("resources", {}):
                    raise UnknownFieldError("limits are not known here")
                variables[name] = str(os.cpu_count())  # without a limit: what the node has
            case _:
                raise UnknownFieldError(f"unknown kind of variable: {entry}")
    return variables


def _volume(volume: Mapping[str, Any], here: Surroundings) -> tuple[Path, bool]:
    """The directory of a volume, and whether it is read-only of its nature."""
    directory = here.directory / volume["name"]
    match {key: value for key, value in volume.items() if key != "name"}:
        case {"emptyDir": {}}:
            directory.mkdir()
            directory.chmod(0o777)
            return directory, False
        case {"hostPath": {"path": path, **kind}}:
            place = here.paths[path]
            if kind.get("type") == "DirectoryOrCreate":
                place.mkdir(parents=True, exist_ok=True)
            return place, False
        case {"configMap": {"name": name, **options}}:
            if name not in here.config_maps:
                if not options.get("optional"):
                    raise FileNotFoundError(f"no ConfigMap {name}: the pod would not start")
                publish(directory, {})
            else:
                publish(directory, here.config_maps[name])
            return directory, True
        case {"projected": {"sources": sources}}:
            publish(directory, dict(_projected(source, here) for source in sources), mode=0o600)
            return directory, True
    raise UnknownFieldError(f"unknown kind of volume: {volume}")


def _projected(source: Mapping[str, Any], here: Surroundings) -> tuple[str, str]:
    match source:
        case {"serviceAccountToken": {"path": path, "audience": "istio-ca", "expirationSeconds": 43200}}:
            return path, here.token
        case {"clusterTrustBundle": {"name": name, "path": path}}:
            return path, here.trust_bundles[name]
    raise UnknownFieldError(f"unknown projection: {source}")


def publish(directory: Path, files: Mapping[str, str], mode: int = 0o644) -> None:
    """Put files into a volume as the kubelet does: all of them change at once, by exchanging one link."""
    directory.mkdir(exist_ok=True)
    generation = len(list(directory.glob("..2*"))) + 1
    data = directory / f"..2026_01_01_00_00_00.{generation}"
    data.mkdir()
    for name, text in files.items():
        (data / name).write_text(text)
        (data / name).chmod(mode)
    link = directory / "..data_tmp"
    link.symlink_to(data.name)
    link.rename(directory / "..data")
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    for old in directory.glob("..2*"):
        if old != data:
            shutil.rmtree(old)
