"""Who is asked carries traffic meanwhile: how much an explanation does between two pauses is bounded.

Counted is what takes time: names that are handed out, workloads that are read, names that are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests.explain.meshes import store_of
from tests.support import big_meshes
from tests.support.fake_mesh import HBONE, FakeMesh
from ztunnel.bounds import DEFAULTS
from ztunnel.decide import survey
from ztunnel.decide.authorize import explain_policy
from ztunnel.explain import arrival, catalogue, nearest
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.connection_path import Question, Told, telling
from ztunnel.explain.explanation import Outcome
from ztunnel.messages import MeshDelta, ResourceKind
from ztunnel.model.policy import Action, Match
from ztunnel.model.workload import HealthStatus
from ztunnel.state.store import MeshStore

WORKLOADS = 6000
POD = "ns-1/app-1-7d4b9c6f5-0000a"


class Counting(StoreCatalogue):
    """A catalogue that counts what it is asked for; it is its own view."""

    def __init__(self, store: MeshStore) -> None:
        super().__init__(store)
        self.work: Counter[str] = Counter()

    @property
    def view(self):
        return self

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def workload(self, uid: str):
        self.work["read"] += 1
        return self._store.workload(uid)

    def read(self, uid: str):
        self.work["read"] += 1
        return super().read(uid)

    def mentions(self, uid: str, text: str) -> bool:
        self.work["glanced"] += 1
        return super().mentions(uid, text)

    def uids(self) -> Iterator[Sequence[str]]:
        for part in super().uids():
            self.work["named"] += len(part)
            yield part

    def services(self):
        for part in super().services():
            self.work["named"] += len(part)
            yield part


@pytest.fixture(scope="module")
def big() -> MeshStore:
    store = MeshStore("node-1")
    delta = MeshDelta(1, ResourceKind.ADDRESS, tuple(big_meshes.resources(WORKLOADS)))
    assert list(store.apply(delta).rejected) == []
    return store


@pytest.fixture
def compared(monkeypatch) -> Counter[str]:
    """How many names were compared, briefly and in full."""
    count: Counter[str] = Counter()
    for name in ("_pairs", "_likeness"):
        monkeypatch.setattr(nearest, name, counted(count, name, getattr(nearest, name)))
    return count


def counted(count: Counter[str], name: str, function):
    def call(*arguments):
        count[name] += 1
        return function(*arguments)

    return call


def slices(counting: Counting, question: Question, compared: Counter[str]) -> tuple[Told, list[Counter[str]]]:
    """What is told, and the work of each slice."""
    done: list[Counter[str]] = []
    steps = telling(counting, question, Setting(network=big_meshes.NETWORK))
    while True:
        counting.work.clear()
        compared.clear()
        try:
            next(steps)
        except StopIteration as end:
            done.append(counting.work + compared)
            return end.value, done
        done.append(counting.work + compared)


def most(done: list[Counter[str]], what: str) -> int:
    return max(one[what] for one in done)


@pytest.mark.parametrize(
    ("question", "outcome", "offered"),
    [
        (Question(POD, "app-201.ns-1:80"), Outcome.ALLOWED, ""),
        (Question(POD, "172.16.0.9:80"), Outcome.ALLOWED, ""),
        (Question("ns-1/app-1-7d4b9c6f5-0000q", "app-201.ns-1:80"), Outcome.UNKNOWN, POD),
        (Question("nowhere", "app-201.ns-1:80"), Outcome.UNKNOWN, ""),
        (Question(POD, "app-210.ns-1:80"), Outcome.UNKNOWN, "ns-1/app-201"),
        (Question(POD, "ns-1/ap-201:80"), Outcome.UNKNOWN, "ns-1/app-201"),
    ],
)
def test_each_slice_of_a_question_about_a_big_mesh_is_small(big, compared, question, outcome, offered):
    told, done = slices(Counting(big), question, compared)
    assert told.explanation.outcome is outcome
    assert offered in ("", *told.explanation.nearest)
    assert sum(one["named"] for one in done) >= WORKLOADS
    assert most(done, "named") <= 2 * catalogue.NAME_PART
    assert most(done, "glanced") <= catalogue.NAME_PART
    assert most(done, "read") <= 2 * survey.SURVEY_SLICE
    assert most(done, "_pairs") <= nearest.COUNTED_SLICE + 1
    assert most(done, "_likeness") <= nearest.COMPARED_SLICE
    assert sum(one["_likeness"] for one in done) <= 2 * DEFAULTS.explain.names_compared


def test_a_service_with_many_endpoints_is_gone_through_in_slices_but_for_the_decision_itself(compared):
    mesh = FakeMesh()
    web = mesh.add_service("web", "10.96.0.1", ports={80: 8080}, hostname="web.default.svc.cluster.local")
    mesh.add_workload("client", "10.0.0.1", HBONE)
    ready, unready = 900, 700
    for number in range(ready + unready):
        status = HealthStatus.HEALTHY if number < ready else HealthStatus.UNHEALTHY
        address = f"10.1.{number // 250}.{number % 250 + 1}"
        mesh.add_workload(f"web-{number}", address, HBONE, behind=web, status=status)
    told, done = slices(Counting(store_of(mesh)), Question("default/client", "web:80"), compared)
    said = told.explanation
    assert [one.state for one in said.endpoints] == ["chosen"] + ["possible"] * 199
    assert any("Of 1600 endpoints 200 are listed" in note for note in said.notes)
    *others, decision = sorted(one["read"] for one in done)
    assert ready <= decision <= ready + 2 * survey.SURVEY_SLICE
    assert others[-1] <= 2 * survey.SURVEY_SLICE
    assert sum(others) >= ready + unready - 2 * survey.SURVEY_SLICE


def test_policies_are_explained_some_at_a_time(compared, monkeypatch):
    mesh = FakeMesh()
    mesh.add_workload("client", "10.0.0.1", HBONE)
    mesh.add_workload("server", "10.0.0.2", HBONE)
    for number in range(130):
        mesh.add_policy(f"one-{number}", Action.DENY, ((Match(destination_ports=(number + 1,)),),))
    monkeypatch.setattr(arrival, "explain_policy", counted(compared, "policies", explain_policy))
    told, done = slices(Counting(store_of(mesh)), Question("default/client", "10.0.0.2:80"), compared)
    assert told.explanation.outcome is Outcome.REFUSED
    assert sum(one["policies"] for one in done) == 130
    assert most(done, "policies") == arrival.POLICIES_SLICE
