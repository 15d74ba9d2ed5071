"""How values come together: defaults, profile, compatibility version, platform, global, the user's own."""

from __future__ import annotations

import shutil

import pytest
import yaml

from tests.support.chart import CHART, Rendering, RenderingError, render

PRESETS = yaml.safe_load((CHART / "files" / "presets.yaml").read_text())


def test_the_ambient_profile():
    rendering = render({"profile": "ambient"})
    assert rendering.container["image"] == "registry.istio.io/testing/ztunnel:latest-distroless"
    names = list(rendering.env)
    assert rendering.env["ISTIO_META_ENABLE_HBONE"] == "true"
    assert names.index("ISTIO_META_ENABLE_HBONE") == names.index("SERVICE_ACCOUNT") + 1
    assert set(names) - set(render().env) == {"ISTIO_META_ENABLE_HBONE"}


def test_the_preview_profile():
    rendering = render({"profile": "preview"})
    assert rendering.env["ISTIO_META_DNS_CAPTURE"] == "true"
    assert rendering.container["image"] == render().container["image"]


@pytest.mark.parametrize("kind", ["profile", "platform"])
def test_a_preset_may_be_chosen_below_global(kind):
    [name] = {"profile": ["ambient"], "platform": ["openshift"]}[kind]
    assert render({"global": {kind: name}}).text == render({kind: name}).text
    assert render({kind: name}).text != render().text


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, presets in PRESETS.items() for name, preset in presets.items() if not preset],
)
def test_a_preset_that_does_not_concern_ztunnel_is_accepted_and_changes_nothing(kind, name):
    assert render({kind: name}).text == render().text


@pytest.mark.parametrize("kind", ["profile", "compatibilityVersion", "platform"])
def test_an_unknown_preset_is_refused_and_the_known_ones_are_named(kind):
    with pytest.raises(RenderingError, match=f'unknown {kind} "nope"') as refusal:
        render({kind: "nope"})
    for name in PRESETS[kind]:
        assert name in str(refusal.value)


def image_tag(rendering: Rendering) -> str:
    return str(rendering.container["image"]).rpartition(":")[2]


@pytest.mark.parametrize(
    ("values", "tag"),
    [
        ({"profile": "ambient", "variant": "debug"}, "latest-debug"),
        ({"profile": "ambient", "variant": ""}, "latest"),
        ({"profile": "ambient", "global": {"variant": "debug"}}, "latest-debug"),
        ({"profile": "ambient", "global": {"variant": ""}}, "latest"),
        ({"profile": "ambient", "variant": "own", "global": {"variant": "common"}}, "latest-own"),
        ({"variant": "own", "global": {"variant": "common"}}, "latest-own"),
        ({"tag": "", "global": {"tag": "common"}}, ""),
    ],
    ids=str,
)
def test_the_users_own_value_wins_over_global_and_that_over_the_profile(values, tag):
    assert image_tag(render(values)) == tag


def test_maps_are_merged_and_lists_are_replaced():
    rendering = render(
        {
            "profile": "ambient",
            "global": {"meshConfig": {"defaultConfig": {"proxyMetadata": {"FROM_GLOBAL": "1"}}}},
            "meshConfig": {"defaultConfig": {"proxyMetadata": {"OWN": "2"}}},
            "tolerations": [],
        }
    )
    assert {"ISTIO_META_ENABLE_HBONE", "FROM_GLOBAL", "OWN"} <= set(rendering.env)
    assert "tolerations" not in rendering.pod


def test_null_takes_away_what_a_preset_or_a_default_has():
    rendering = render(
        {
            "profile": "ambient",
            "meshConfig": {"defaultConfig": {"proxyMetadata": {"ISTIO_META_ENABLE_HBONE": None}}},
            "podAnnotations": {"prometheus.io/scrape": None},
            "resources": {"requests": {"cpu": None}},
        }
    )
    assert "ISTIO_META_ENABLE_HBONE" not in rendering.env
    assert "prometheus.io/scrape" not in rendering.pod_metadata["annotations"]
    assert "ZTUNNEL_RESOURCE_CPU_REQUEST" not in rendering.env


def test_a_switch_can_be_turned_off_again():
    assert "ResourceQuota" in render({"platform": "gke"}).kinds
    assert "ResourceQuota" not in render({"platform": "gke", "resourceQuotas": {"enabled": False}}).kinds


def test_a_platform_wins_over_a_profile_and_the_user_over_both(tmp_path):
    # No preset of ours sets what another sets, so the order is shown with a copy of the chart.
    chart = shutil.copytree(CHART, tmp_path / "ztunnel")
    (chart / "files" / "presets.yaml").write_text(
        yaml.safe_dump(
            {
                "profile": {"p": {"network": "profile", "logLevel": "profile", "caAddress": "p", "hub": "p"}},
                "compatibilityVersion": {
                    "1": {"network": "version", "logLevel": "version", "caAddress": "v"}
                },
                "platform": {"f": {"network": "platform", "logLevel": "platform"}},
            }
        )
    )
    values = {"profile": "p", "compatibilityVersion": "1", "platform": "f", "network": "user"}
    rendering = render(values, chart=chart)
    assert rendering.env["NETWORK"] == "user"
    assert rendering.env["RUST_LOG"] == "platform"
    assert rendering.env["CA_ADDRESS"] == "v"
    assert rendering.container["image"] == "p/ztunnel:latest"


def test_the_chart_works_as_part_of_another(tmp_path):
    umbrella = tmp_path / "mesh"
    shutil.copytree(CHART, umbrella / "charts" / "ztunnel")
    (umbrella / "Chart.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v2", "name": "mesh", "version": "1.0.0"})
    )
    values = {
        "global": {"hub": "common", "platform": "openshift"},
        "ztunnel": {"tag": "own", "logAsJson": True},
    }
    rendering = render(values, chart=umbrella)
    assert rendering.container["image"] == "common/ztunnel:own"
    assert rendering.env["LOG_FORMAT"] == "json"
    assert rendering.kinds == ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "ServiceAccount"]


def test_values_below_defaults_are_refused():
    with pytest.raises(RenderingError, match=r"values below `defaults` have no effect"):
        render({"defaults": {"hub": "x"}})


@pytest.mark.parametrize(
    "values",
    [
        {"logAsJson": "false"},
        {"global": {"logAsJson": "false"}},
        {"resourceScope": "everything"},
        {"tolerations": {"operator": "Exists"}},
        {"env": {"A": {"valueFrom": {}}}},
        {"imagePullPolicy": "always"},
        {"terminationGracePeriodSeconds": -1},
        {"terminationGracePeriodSeconds": "30s"},
        {"imagePullSecrets": [{"name": "x"}]},
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_refused_before_anything_is_installed(values):
    with pytest.raises(RenderingError, match="don't meet the specifications of the schema"):
        render(values)


def test_a_grace_period_may_be_given_as_text():
    assert (
        render({}, "--set-string", "terminationGracePeriodSeconds=60").pod["terminationGracePeriodSeconds"]
        == 60
    )
