"""When CI starts a real cluster, and what it says when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import cluster, programs, requirements, smoke, waypoint_image
from tests.cluster.footprint import left_behind
from tests.cluster.places import Places, Progress


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A cache with everything in it, on a machine that lacks nothing."""
    monkeypatch.setattr(requirements, "missing", list)
    monkeypatch.setattr(cluster, "is_on_this_machine", lambda: False)
    places = Places(tmp_path)
    for each in programs.PROGRAMS:
        path = each.path(places)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (places.images / "layout").mkdir(parents=True)
    return places


def test_it_is_run_when_all_is_there_and_time_is_left(whole):
    assert smoke.why_not(whole, 400) is None


def test_it_is_not_run_for_lack_of_time(whole):
    assert smoke.why_not(whole, 200) == "200 s are left, and it takes up to 360"


def test_it_is_not_run_for_lack_of_a_program_or_of_images(whole):
    (whole.images / "layout").rmdir()
    assert "its images are not in" in str(smoke.why_not(whole, 400))
    programs.program("kubelet").path(whole).unlink()
    assert "1 of its programs are not in" in str(smoke.why_not(whole, 400))


def test_it_is_not_run_beside_another(whole, monkeypatch):
    monkeypatch.setattr(cluster, "is_on_this_machine", lambda: True)
    assert smoke.why_not(whole, 400) == "somebody's cluster is up on this machine"


def test_a_cluster_of_another_cache_is_neither_used_nor_ended(whole, monkeypatch):
    monkeypatch.setattr(cluster, "is_on_this_machine", lambda: True)
    with pytest.raises(RuntimeError, match="a cluster is up on this machine that is not of"):
        cluster.up(whole, Progress())
    monkeypatch.setattr(cluster, "processes", lambda _: ["17 containerd"])
    assert cluster.down(whole) == [f"of a cluster that is not of {whole.cache}: 17 containerd"]


def test_it_is_not_run_where_the_machine_lacks_something(whole, monkeypatch):
    monkeypatch.setattr(requirements, "missing", lambda: ["buildah, which ...\n  Debian: ..."])
    assert smoke.why_not(whole, 400) == "this machine lacks buildah, which ..."


def test_not_running_it_is_no_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLUSTER_CACHE", str(tmp_path))
    assert smoke.smoke(10) == 0
    assert capsys.readouterr().out.startswith("real cluster: not run here: 10 s are left")


def test_each_program_has_a_version_pinned_in_its_modules_go_mod():
    for each in programs.PROGRAMS:
        assert each.module.pinned.startswith("v")
    with pytest.raises(LookupError):
        _ = programs.Module("etcd", "example.org/other").pinned


def test_of_the_waypoints_template_one_extension_is_left_out():
    block = '{{- if .metadata_discovery }}\n {\n "name": "metadata_discovery" },\n {{- end }}\n'
    other = '{{- if .metadata_discovery }} {"prefix": "workload_discovery"}, {{- end }}'
    assert waypoint_image.bootstrap(f'[{block}{{"name": "x"}}] {other}') == f'[\n{{"name": "x"}}] {other}'
    with pytest.raises(ValueError, match="metadata_discovery"):
        waypoint_image.bootstrap("[]")


def test_a_cluster_that_is_up_is_left_alone(whole):
    whole.state.mkdir()
    (whole.state / "admin.conf").touch()
    assert "somebody's cluster is up" in str(smoke.why_not(whole, 400))


def test_what_others_make_meanwhile_is_not_taken_for_ours():
    before = {"links": ["lo"], "network namespaces": ["a"], "routes": [], "switches": ["x=0"], "paths": []}
    others = {"links": ["lo", "veth1"], "network namespaces": ["b"], "routes": ["192.0.2.0/24 dev veth1"]}
    assert left_behind(before, others) == []
    ours = {
        "links": ["lo", "zt-cluster"],
        "network namespaces": ["a", "zt-node1"],
        "routes": ["10.244.1.0/24 via 10.231.0.11 dev zt-cluster"],
        "switches": ["x=1"],
        "paths": ["/run/netns", "/run/netns/b", "/opt/cni"],
        "processes": ["12 kubelet"],
    }
    assert left_behind(before, ours) == [
        "links: zt-cluster",
        "network namespaces: zt-node1",
        "routes: 10.244.1.0/24 via 10.231.0.11 dev zt-cluster",
        "switches: x=1",
        "paths: /run/netns",
        "paths: /opt/cni",
        "processes: 12 kubelet",
    ]
