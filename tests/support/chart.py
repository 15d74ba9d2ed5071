"""The chart as data: rendered by the real helm and read as YAML. What `helm test` adds is left out."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.tools import find_tool

CHART = Path(__file__).parents[2] / "charts" / "ztunnel"


class RenderingError(Exception):
    """Helm refused to render. The text is its output."""


@dataclass(frozen=True)
class Rendering:
    """The output of one `helm template`."""

    text: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """All objects, in helm's order of installation."""
        return [document for document in yaml.safe_load_all(self.text) if document]

    @property
    def kinds(self) -> list[str]:
        """The kinds of the objects, sorted."""
        return sorted(item["kind"] for item in self.objects)

    def object(self, kind: str) -> dict[str, Any]:
        """Returns the one object of a kind."""
        [found] = [item for item in self.objects if item["kind"] == kind]
        return found

    @property
    def daemonset(self) -> dict[str, Any]:
        """The DaemonSet."""
        return self.object("DaemonSet")

    @property
    def pod(self) -> dict[str, Any]:
        """The specification of the pods."""
        spec: dict[str, Any] = self.daemonset["spec"]["template"]["spec"]
        return spec

    @property
    def pod_metadata(self) -> dict[str, Any]:
        """Labels and annotations of the pods."""
        metadata: dict[str, Any] = self.daemonset["spec"]["template"]["metadata"]
        return metadata

    @property
    def container(self) -> dict[str, Any]:
        """The only container."""
        [container] = self.pod["containers"]
        return dict(container)

    @property
    def env(self) -> dict[str, Any]:
        """The container's variables, in order: a literal as text, a reference as its object."""
        entries = self.container["env"]
        found = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}
        assert len(found) == len(entries), "a variable is there twice"
        return found

    @property
    def mounts(self) -> dict[str, dict[str, Any]]:
        """The volume that is mounted at each path, without its name."""
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        return {
            mount["mountPath"]: {key: value for key, value in volumes[mount["name"]].items() if key != "name"}
            for mount in self.container["volumeMounts"]
        }


def render(
    values: Mapping[str, Any] | None = None,
    *arguments: str,
    release: str = "ztunnel",
    namespace: str = "istio-system",
    chart: Path = CHART,
) -> Rendering:
    """Render with these values, given in a file as users do. Raises RenderingError."""
    return _render(json.dumps(values or {}), arguments, release, namespace, chart)


@functools.cache
def _render(values: str, arguments: tuple[str, ...], release: str, namespace: str, chart: Path) -> Rendering:
    command = [find_tool("helm"), "template", "--no-hooks", release, str(chart), "--namespace", namespace]
    finished = subprocess.run(
        [*command, "--values", "-", *arguments], input=values, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise RenderingError(finished.stderr)
    return Rendering(finished.stdout)
