"""Whether helm and Kubernetes would take the chart: lint, schemas of many versions, the notes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, render
from tests.tools import find_tool

# The oldest here is the first that has ClusterTrustBundle volumes.
KUBERNETES = ("1.29.0", "1.33.0", "1.37.0")

EVERYTHING: dict[str, Any] = {
    "profile": "ambient",
    "compatibilityVersion": "1.28",
    "platform": "openshift",
    "logAsJson": True,
    "network": "network-1",
    "revision": "canary",
    "resourceQuotas": {"enabled": True},
    "peerCaCrl": {"enabled": True},
    "env": {"ENABLE_CLUSTER_TRUST_BUNDLE_API": True, "HTTP2_FRAME_SIZE": 1048576},
    "imagePullPolicy": "IfNotPresent",
    "imagePullSecrets": ["pull"],
    "labels": {"a": 1},
    "annotations": {"b": True},
    "podLabels": {"c": 1.5},
    "podAnnotations": {"d": "e"},
    "volumes": [{"name": "extra", "emptyDir": {"medium": "Memory"}}],
    "volumeMounts": [{"name": "extra", "mountPath": "/extra", "readOnly": True}],
    "resources": {"limits": {"cpu": 2, "memory": "1Gi"}},
    "nodeSelector": {"mesh": True},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "Exists"}]}]
            }
        }
    },
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": "2"}]},
    "terminationGracePeriodSeconds": 3600,
    "global": {"networkPolicy": {"enabled": True}},
}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_helm_lint_has_nothing_to_say(values, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [find_tool("helm"), "lint", "--strict", "--quiet", str(CHART), "--values", str(file)]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout.strip(), linted.stderr.strip()) == (0, "", "")


def validate(text: str, tmp_path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "objects.yaml"
    file.write_text(text)
    versions = [argument for version in KUBERNETES for argument in ("-k", version)]
    command = [find_tool("kubernetes-validate"), "--strict", *versions, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_objects_have_the_schemas_of_kubernetes(values, tmp_path):
    rendering = render(values, "--kube-version", KUBERNETES[-1])
    result = validate(rendering.text, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout + result.stderr
    for item in rendering.objects:
        checked = said.count(f"passed for resource {item['kind'].lower()}/")
        assert checked == len(KUBERNETES), said


def test_the_schemas_would_notice_a_misspelt_field(tmp_path):
    result = validate(render().text.replace("readinessProbe:", "readynessProbe:"), tmp_path)
    assert result.returncode != 0
    assert "readynessProbe" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("values", "there", "absent"),
    [
        ({}, ["daemonset/ztunnel", "istiod.istio-system.svc:15012"], ["trustedZtunnelName"]),
        ({"resourceName": "zt"}, ["daemonset/zt", "trustedZtunnelName=zt"], []),
    ],
    ids=["usual name", "another name"],
)
def test_the_notes_after_an_installation(values, there, absent, tmp_path):
    # Helm shows notes to those only who have a cluster; an object of a copy of the chart can be seen without.
    chart = shutil.copytree(CHART, tmp_path / "ztunnel")
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    (chart / "templates" / "notes.yaml").write_text(
        'kind: Notes\ntext: {{ tpl (.Files.Get "notes.txt") . | quote }}\n'
    )
    notes = render(values, chart=chart).object("Notes")["text"]
    assert all(text in notes for text in there), notes
    assert not any(text in notes for text in absent), notes


def test_the_tool_that_validates_runs_in_a_checkout_that_was_copied_or_moved():
    tool = Path(find_tool("kubernetes-validate"))
    assert "/../../../.venv/bin/python" in tool.read_text()
    assert str(tool.parents[3]) not in tool.read_text()
