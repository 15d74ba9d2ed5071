"""What each value of the chart changes, and that it changes nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.chart import CHART, RenderingError, render
from tests.support.scripts import load_script

POD = ("DaemonSet", "spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)
POD_METADATA = ("DaemonSet", "spec", "template", "metadata")
MISSING = "missing"

Place = tuple[str | int, ...]


def leaves(tree: Any, place: Place = ()) -> dict[Place, Any]:
    """All that is in a tree of maps and lists, by its place; what has a name is found by that."""
    if isinstance(tree, dict) and tree:
        return {
            key: value for name, item in tree.items() for key, value in leaves(item, (*place, name)).items()
        }
    if isinstance(tree, list) and tree:
        named = all(isinstance(item, dict) and "name" in item for item in tree) and place[-1] in (
            "env",
            "volumes",
        )
        return {
            key: value
            for index, item in enumerate(tree)
            for key, value in leaves(item, (*place, item["name"] if named else index)).items()
        }
    return {place: tree}


def changes(values: dict[str, Any]) -> dict[Place, Any]:
    """What differs from the default rendering."""
    before, after = (
        leaves({item["kind"]: item for item in render(settings).objects}) for settings in ({}, values)
    )
    return {
        place: after.get(place, MISSING)
        for place in before.keys() | after.keys()
        if before.get(place, MISSING) != after.get(place, MISSING)
    }


def variable(name: str, value: str) -> dict[Place, Any]:
    """A variable that was not there before."""
    return {(*CONTAINER, "env", name, "name"): name, (*CONTAINER, "env", name, "value"): value}


def value_of(name: str) -> Place:
    return (*CONTAINER, "env", name, "value")


def everywhere(kinds: list[str], key: str, name: str, value: str) -> dict[Place, Any]:
    return {(kind, "metadata", key, name): value for kind in kinds}


OBJECTS = ["DaemonSet", "ServiceAccount"]

CASES: dict[str, tuple[dict[str, Any], dict[Place, Any]]] = {
    "hub, tag": (
        {"hub": "docker.io/me", "tag": "1.31.0"},
        {(*CONTAINER, "image"): "docker.io/me/ztunnel:1.31.0"},
    ),
    "tag that YAML takes for a number": (
        {"tag": 1.31},
        {(*CONTAINER, "image"): "registry.istio.io/testing/ztunnel:1.31"},
    ),
    "variant": (
        {"variant": "distroless"},
        {(*CONTAINER, "image"): "registry.istio.io/testing/ztunnel:latest-distroless"},
    ),
    "image by name": ({"image": "zt"}, {(*CONTAINER, "image"): "registry.istio.io/testing/zt:latest"}),
    "whole image": (
        {"image": "ghcr.io/me/zt:7", "variant": "distroless", "tag": "8"},
        {(*CONTAINER, "image"): "ghcr.io/me/zt:7"},
    ),
    "imagePullPolicy": ({"imagePullPolicy": "Always"}, {(*CONTAINER, "imagePullPolicy"): "Always"}),
    "imagePullSecrets": (
        {"imagePullSecrets": ["one", "two"]},
        {
            ("ServiceAccount", "imagePullSecrets", 0, "name"): "one",
            ("ServiceAccount", "imagePullSecrets", 1, "name"): "two",
        },
    ),
    "network": ({"network": "network-1"}, variable("NETWORK", "network-1")),
    "resourceName": (
        {"resourceName": "zt"},
        {(kind, "metadata", "name"): "zt" for kind in OBJECTS} | {(*POD, "serviceAccountName"): "zt"},
    ),
    "labels": ({"labels": {"team": "net"}}, everywhere(OBJECTS, "labels", "team", "net")),
    "annotations": (
        {"annotations": {"note": 7}},
        everywhere(OBJECTS, "annotations", "note", "7"),
    ),
    "podLabels": ({"podLabels": {"team": "net"}}, {(*POD_METADATA, "labels", "team"): "net"}),
    "podLabels cannot break the selector": ({"podLabels": {"app": "other"}}, {}),
    "podAnnotations": (
        {"podAnnotations": {"prometheus.io/scrape": "false", "note": "x"}},
        {
            (*POD_METADATA, "annotations", "prometheus.io/scrape"): "false",
            (*POD_METADATA, "annotations", "note"): "x",
        },
    ),
    "volumes, volumeMounts": (
        {
            "volumes": [{"name": "extra", "emptyDir": {}}],
            "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
        },
        {
            (*POD, "volumes", "extra", "name"): "extra",
            (*POD, "volumes", "extra", "emptyDir"): {},
            (*CONTAINER, "volumeMounts", 4, "name"): "extra",
            (*CONTAINER, "volumeMounts", 4, "mountPath"): "/extra",
        },
    ),
    "env": (
        {
            "env": {
                "IPV6_ENABLED": False,
                "HTTP2_STREAM_WINDOW_SIZE": 4194304,
                "TEXT": 'a "b"',
                "NOT_THERE": None,
            }
        },
        variable("IPV6_ENABLED", "false")
        | variable("HTTP2_STREAM_WINDOW_SIZE", "4194304")
        | variable("TEXT", 'a "b"'),
    ),
    "resources": (
        {"resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}, "requests": {"cpu": 1}}},
        {
            (*CONTAINER, "resources", "limits", "cpu"): "1500m",
            (*CONTAINER, "resources", "limits", "memory"): "1Gi",
            (*CONTAINER, "resources", "requests", "cpu"): 1,
            value_of("ZTUNNEL_RESOURCE_CPU_REQUEST"): "1",
        }
        | variable("ZTUNNEL_RESOURCE_CPU_LIMIT", "1500m"),
    ),
    "tolerations": (
        {"tolerations": [{"operator": "Exists"}]},
        {
            (*POD, "tolerations", 0, "effect"): MISSING,
            **{(*POD, "tolerations", 1, key): MISSING for key in ("key", "operator")},
            **{(*POD, "tolerations", 2, key): MISSING for key in ("effect", "operator")},
        },
    ),
    "nodeSelector": ({"nodeSelector": {"pool": "a"}}, {(*POD, "nodeSelector", "pool"): "a"}),
    "affinity": (
        {"affinity": {"nodeAffinity": {"x": 1}}},
        {(*POD, "affinity", "nodeAffinity", "x"): 1},
    ),
    "dnsPolicy, dnsConfig": (
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"]}},
        {(*POD, "dnsPolicy"): "None", (*POD, "dnsConfig", "nameservers", 0): "10.0.0.1"},
    ),
    "updateStrategy": (
        {"updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}},
        {
            ("DaemonSet", "spec", "updateStrategy", "rollingUpdate", "maxSurge"): 0,
            ("DaemonSet", "spec", "updateStrategy", "rollingUpdate", "maxUnavailable"): 1,
        },
    ),
    "updateStrategy OnDelete has no rollingUpdate": (
        {"updateStrategy": {"type": "OnDelete"}},
        {
            ("DaemonSet", "spec", "updateStrategy", "type"): "OnDelete",
            ("DaemonSet", "spec", "updateStrategy", "rollingUpdate", "maxSurge"): MISSING,
            ("DaemonSet", "spec", "updateStrategy", "rollingUpdate", "maxUnavailable"): MISSING,
        },
    ),
    "terminationGracePeriodSeconds": (
        {"terminationGracePeriodSeconds": 3600},
        {
            (*POD, "terminationGracePeriodSeconds"): 3600,
            value_of("TERMINATION_GRACE_PERIOD_SECONDS"): "3600",
        },
    ),
    "logLevel": ({"logLevel": "info,access=debug"}, {value_of("RUST_LOG"): "info,access=debug"}),
    "logAsJson": ({"logAsJson": True}, variable("LOG_FORMAT", "json")),
    "revision": (
        {"revision": "canary"},
        {
            ("DaemonSet", "metadata", "annotations", "istio.io/rev"): "canary",
            (*POD_METADATA, "annotations", "istio.io/rev"): "canary",
            (*POD_METADATA, "labels", "istio.io/rev"): "canary",
            value_of("CA_ADDRESS"): "istiod-canary.istio-system.svc:15012",
            value_of("XDS_ADDRESS"): "istiod-canary.istio-system.svc:15012",
        }
        | everywhere(OBJECTS, "labels", "istio.io/rev", "canary"),
    ),
    "istioNamespace": (
        {"istioNamespace": "mesh"},
        {value_of(name): "istiod.mesh.svc:15012" for name in ("CA_ADDRESS", "XDS_ADDRESS")},
    ),
    "caAddress": ({"caAddress": "ca.example:443"}, {value_of("CA_ADDRESS"): "ca.example:443"}),
    "xdsAddress": ({"xdsAddress": "xds.example:443"}, {value_of("XDS_ADDRESS"): "xds.example:443"}),
    "multiCluster.clusterName": (
        {"multiCluster": {"clusterName": "east"}},
        {value_of("ISTIO_META_CLUSTER_ID"): "east"},
    ),
    "proxyMetadata": (
        {"meshConfig": {"defaultConfig": {"proxyMetadata": {"ISTIO_META_X": True, "Y": 2}}}},
        variable("ISTIO_META_X", "true") | variable("Y", "2"),
    ),
    "trustBundleName": (
        {"trustBundleName": "roots"},
        {(*POD, "volumes", "istiod-ca-cert", "configMap", "name"): "roots"},
    ),
    "seLinuxOptions": (
        {"seLinuxOptions": {"type": "t"}},
        {(*CONTAINER, "securityContext", "seLinuxOptions", "type"): "t"},
    ),
    "ownerName": ({"ownerName": "me"}, {}),
    "what other charts of Istio know": ({"pilot": {"env": {"A": "b"}}, "cni": {"enabled": True}}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_value_changes_what_it_is_for_and_nothing_else(name):
    values, expected = CASES[name]
    assert changes(values) == expected


@pytest.mark.parametrize("name", CASES)
def test_a_value_below_global_means_the_same(name):
    values, expected = CASES[name]
    assert changes({"global": values}) == expected


def test_the_users_variables_come_after_ours():
    rendering = render(
        {
            "logAsJson": True,
            "network": "n",
            "env": {"ZZ": "1", "AA": "2"},
            "meshConfig": {"defaultConfig": {"proxyMetadata": {"META": "3"}}},
            "resources": {"limits": {"cpu": 2}},
            "peerCaCrl": {"enabled": True},
        }
    )
    assert list(rendering.env) == [
        "CA_ADDRESS",
        "XDS_ADDRESS",
        "LOG_FORMAT",
        "NETWORK",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "ISTIO_META_CLUSTER_ID",
        "INPOD_ENABLED",
        "TERMINATION_GRACE_PERIOD_SECONDS",
        "POD_NAME",
        "POD_NAMESPACE",
        "NODE_NAME",
        "INSTANCE_IP",
        "SERVICE_ACCOUNT",
        "META",
        "ZTUNNEL_CPU_LIMIT",
        "ZTUNNEL_RESOURCE_CPU_LIMIT",
        "ZTUNNEL_RESOURCE_CPU_REQUEST",
        "AA",
        "ZZ",
        "CRL_PATH",
    ]


def test_the_revocation_list_is_mounted_read_only_where_its_variable_points():
    rendering = render({"peerCaCrl": {"enabled": True}})
    assert rendering.mounts["/var/run/secrets/istio/crl"] == {
        "configMap": {"name": "istio-ca-crl", "optional": True}
    }
    [mount] = [mount for mount in rendering.container["volumeMounts"] if mount["name"] == "istio-ca-crl"]
    assert mount["readOnly"] is True
    assert rendering.env["CRL_PATH"] == f"{mount['mountPath']}/ca-crl.pem"


@pytest.mark.parametrize("switch", [True, "true"])
@pytest.mark.parametrize(("name", "bundle"), [(None, "root-cert"), ("roots", "roots")])
def test_the_root_can_come_from_a_cluster_trust_bundle(switch, name, bundle):
    values: dict[str, Any] = {"env": {"ENABLE_CLUSTER_TRUST_BUNDLE_API": switch}}
    rendering = render(values | ({"trustBundleName": name} if name else {}))
    source = {"clusterTrustBundle": {"name": f"istio.io:istiod-ca:{bundle}", "path": "root-cert.pem"}}
    assert rendering.mounts["/var/run/secrets/istio"] == {"projected": {"sources": [source]}}
    assert rendering.env["ENABLE_CLUSTER_TRUST_BUNDLE_API"] == "true"


def test_the_cluster_trust_bundle_stays_off_when_the_variable_is_false():
    rendering = render({"env": {"ENABLE_CLUSTER_TRUST_BUNDLE_API": False}})
    assert rendering.mounts["/var/run/secrets/istio"] == {"configMap": {"name": "istio-ca-root-cert"}}


def misspellings(name: str) -> set[str]:
    """Of a name in camel case: in lower case, and with its words apart."""
    words = re.sub("([A-Z])", r" \1", name).lower().split()
    return {"".join(words), "_".join(words), "-".join(words)} - {name}


def test_a_misspelt_value_is_refused_with_the_right_spelling():
    schema = json.loads((CHART / "values.schema.json").read_text())
    properties = schema["definitions"]["values"]["properties"]
    names = [name for name, rule in properties.items() if "const" not in rule]
    for name in names:
        for wrong in misspellings(name):
            assert properties[wrong] == {"const": f"(unknown value: write {name})"}
    for values in ({"loglevel": "debug"}, {"global": {"log_level": "debug"}}):
        with pytest.raises(RenderingError, match="write logLevel"):
            render(values)


def test_the_schema_says_what_each_value_does():
    schema = json.loads((CHART / "values.schema.json").read_text())["definitions"]["values"]
    for name, _, comment in load_script("reference.py").values((CHART / "values.yaml").read_text()):
        found = schema
        for part in name.split("."):
            found = found["properties"][part]
        assert found["description"] == comment, name
