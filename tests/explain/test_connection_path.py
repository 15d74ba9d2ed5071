"""The way of a connection, told for meshes made by hand: each kind of outcome, and what a person asks by."""

from __future__ import annotations

import pytest

from tests.explain.meshes import store_of
from tests.support.fake_mesh import HBONE, TCP, FakeMesh, by_address, by_hostname
from ztunnel.bounds import ExplainBounds
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.connection_path import Question, explain
from ztunnel.explain.explanation import Explanation, Outcome
from ztunnel.explain.text import lines
from ztunnel.model.policy import Action, Match, StringMatch, StringMatchKind

DOMAIN = "default.svc.cluster.local"


@pytest.fixture
def mesh() -> FakeMesh:
    made = FakeMesh()
    web = made.add_service("web", "10.96.0.1", ports={80: 8080}, hostname=f"web.{DOMAIN}")
    made.add_service("two", "10.96.0.2", ports={80: 8080, 81: 8081}, hostname=f"two.{DOMAIN}")
    made.add_workload("client", "10.0.0.1", HBONE)
    made.add_workload("web-1", "10.0.0.2", HBONE, behind=web)
    made.add_workload("legacy", "10.0.0.7", TCP)
    return made


def ask(mesh: FakeMesh, to: str, source: str = "default/client") -> Explanation:
    return explain(StoreCatalogue(store_of(mesh)), Question(source, to), Setting())


def test_the_length_of_an_answer_is_a_bound(mesh):
    web = mesh.add_service("wide", "10.96.0.77", ports={80: 8080})
    for number in range(3):
        mesh.add_workload(f"wide-{number}", f"10.0.7.{number + 1}", HBONE, behind=web)
    store = StoreCatalogue(store_of(mesh))
    setting = Setting(bounds=ExplainBounds(endpoints=2, names_suggested=1))
    said = explain(store, Question("default/client", "wide:80"), setting)
    assert said.plan is not None
    assert len(said.endpoints) == 2
    assert "Of 3 endpoints 2 are listed." in said.notes
    assert len(explain(store, Question("default/client", "default/wide-:80"), setting).nearest) == 1


@pytest.mark.parametrize(
    "to", ["web", "web:80", "web.default", f"web.{DOMAIN}", "default/web", "10.96.0.1", "10.96.0.1:80"]
)
def test_a_service_by_each_of_its_names(mesh, to):
    said = ask(mesh, to)
    assert (said.outcome, said.destination) == (Outcome.ALLOWED, "10.96.0.1:80")
    assert said.plan is not None
    assert (said.plan.next_hop, said.plan.authority) == ("10.0.0.2:15008", "10.0.0.2:8080")
    assert said.plan.expects == ("spiffe://cluster.local/ns/default/sa/web-1",)
    [endpoint] = said.endpoints
    assert (endpoint.state, endpoint.address, endpoint.port) == ("chosen", "10.0.0.2", 8080)


@pytest.mark.parametrize("source", ["default/client", "cluster//Pod/default/client", "10.0.0.1", "/10.0.0.1"])
def test_a_pod_by_each_of_its_names(mesh, source):
    assert ask(mesh, "web", source).outcome is Outcome.ALLOWED


@pytest.mark.parametrize(
    ("source", "to", "part", "nearest"),
    [
        ("default/clinet", "web", "There is no workload default/clinet", "default/client"),
        ("default/client", "webb", "There is no service or workload webb", "default/web"),
        ("default/client", "two", "has 2 ports; which one is meant?", "two:80"),
        ("default/client", "default/web-1", "it needs a port", None),
        ("default/client", "10.0.0.2", "needs a port", None),
        ("default/client", "2001:db8::1", "needs a port: [2001:db8::1]:80 for instance", None),
        ("default/client", "10.0.0.2:99999", "99999 is no port", None),
    ],
)
def test_what_is_unclear_is_met_with_the_nearest(mesh, source, to, part, nearest):
    said = ask(mesh, to, source)
    assert (said.outcome, said.code) == (Outcome.UNKNOWN, "ZT-EXP-001")
    assert part in said.summary
    assert nearest is None or nearest in said.nearest
    assert "\n".join(lines(said)).endswith("(ZT-EXP-001)")


def test_a_policy_that_refuses_is_named_with_its_clause(mesh):
    principal = StringMatch(StringMatchKind.EXACT, "cluster.local/ns/default/sa/other")
    mesh.add_policy("only-other", Action.ALLOW, ((Match(principals=(principal,)),),))
    said = ask(mesh, "web")
    assert (said.outcome, said.code) == (Outcome.REFUSED, "ZT-POL-001")
    assert said.arrival is not None
    [policy] = said.arrival.policies
    assert (policy.decides, policy.matches) == (True, False)
    assert "principals is [cluster.local/ns/default/sa/other]" in said.summary
    assert "policy    default/only-other (Allow, Namespace): decides" in "\n".join(lines(said))


def test_a_dry_run_policy_is_shown_and_decides_nothing(mesh):
    mesh.add_policy("trial", Action.DENY, (), dry_run=True)
    said = ask(mesh, "web")
    assert said.outcome is Outcome.ALLOWED
    assert said.arrival is not None
    [policy] = said.arrival.policies
    assert (policy.dry_run, policy.matches, policy.decides) == (True, True, False)


def test_through_a_waypoint(mesh):
    guarded = mesh.add_service(
        "guarded", "10.96.0.9", ports={80: 80}, hostname=f"guarded.{DOMAIN}", waypoint=by_address("10.0.0.9")
    )
    mesh.add_workload("waypoint", "10.0.0.9", HBONE)
    mesh.add_workload("behind", "10.0.0.8", HBONE, behind=guarded)
    said = ask(mesh, "guarded")
    assert said.outcome is Outcome.ALLOWED
    assert said.plan is not None
    assert (said.plan.through, said.plan.next_hop) == ("waypoint", "10.0.0.9:15008")
    assert any("are enforced there" in note for note in said.notes)


def test_a_waypoint_that_is_missing(mesh):
    mesh.add_service(
        "lost",
        "10.96.0.9",
        ports={80: 80},
        hostname=f"lost.{DOMAIN}",
        waypoint=by_hostname("default", "nobody"),
    )
    said = ask(mesh, "lost")
    assert (said.outcome, said.code) == (Outcome.REFUSED, "ZT-RTE-004")
    assert said.steps[-1].name == "REFUSE_WAYPOINT"
    assert "Nothing is known under default/nobody: does the waypoint exist" in said.summary


def test_another_network_without_and_with_a_gateway(mesh):
    far = mesh.add_service("far", "10.96.0.9", ports={80: 80}, hostname=f"far.{DOMAIN}")
    mesh.add_workload("there", "10.0.0.8", HBONE, behind=far, network="elsewhere")
    said = ask(mesh, "far")
    assert (said.outcome, said.code) == (Outcome.REFUSED, "ZT-RTE-006")
    assert "is on network 'elsewhere', we are on the network without a name. No network" in said.summary
    assert "No network gateway on network 'elsewhere' is known: is there an east-west gateway" in said.summary
    mesh.add_workload("gateway", "10.0.0.9", HBONE)
    mesh.add_workload(
        "there", "10.0.0.8", HBONE, behind=far, network="elsewhere", network_gateway=by_address("10.0.0.9")
    )
    said = ask(mesh, "far")
    assert said.plan is not None
    assert said.plan.through == "network gateway"
    assert "the service names no identities" in said.summary


def test_outside_the_mesh_at_either_end(mesh):
    said = ask(mesh, "192.0.2.1:443")
    assert (said.outcome, said.plan and said.plan.protocol) == (Outcome.PLAIN, "TCP")
    said = ask(mesh, "default/legacy:80")
    assert said.outcome is Outcome.PLAIN
    assert "a workload outside the mesh" in said.summary
    said = ask(mesh, "web", "default/legacy")
    assert said.outcome is Outcome.PLAIN
    assert said.arrival is not None
    assert said.arrival.sees == "no identity (plaintext)"


def test_strict_policy_refuses_plaintext_from_outside(mesh):
    anybody = StringMatch(StringMatchKind.PRESENCE)
    mesh.add_policy("strict", Action.DENY, ((Match(not_principals=(anybody,)),),))
    said = ask(mesh, "web", "default/legacy")
    assert (said.outcome, said.code) == (Outcome.REFUSED, "ZT-POL-001")
    assert ask(mesh, "web").outcome is Outcome.ALLOWED


def test_another_trust_domain_is_noted(mesh):
    mesh.add_workload(
        "web-1",
        "10.0.0.2",
        HBONE,
        trust_domain="other.domain",
        behind=mesh.services[next(iter(mesh.services))],
    )
    said = ask(mesh, "web")
    assert any("trust domains differ" in note for note in said.notes)


def test_our_own_ports(mesh):
    said = ask(mesh, "127.0.0.1:15001")
    assert (said.outcome, said.code) == (Outcome.REFUSED, "ZT-RTE-001")
