"""Conversations: what is sent, when, and what is remembered from stream to stream."""

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.xds_conversation import changed, hear, requests, resource, response
from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.messages import MeshDelta, Rejected, ResourceKind
from ztunnel.pb.envoy.service.discovery.v3 import Node
from ztunnel.xds.delta import MalformedResponseError
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE, READ_SLICE, XdsSession

NODE = bytes(Node(id="ztunnel~10.0.0.1~a.b~b.svc.cluster.local"))


def refusing(*names: str):
    def refuse(delta: MeshDelta) -> list[Rejected]:
        return [Rejected(r.name, "no good") for r in delta.resources if r.name in names]

    return refuse


def test_the_first_requests_go_out_at_once_address_first_with_the_node_in_both():
    address, authorization = requests(XdsSession(NODE).open())
    assert (address.type_url, authorization.type_url) == (ADDRESS_TYPE, AUTHORIZATION_TYPE)
    for request in (address, authorization):
        assert request.node is not None
        assert request.node.id == "ztunnel~10.0.0.1~a.b~b.svc.cluster.local"
        assert request.resource_names_subscribe == []
        assert request.resource_names_unsubscribe == []
        assert request.initial_resource_versions == {}
        assert request.response_nonce == ""
        assert request.error_detail is None


def test_a_response_is_applied_and_acknowledged_with_its_nonce_and_nothing_else():
    session = XdsSession(NODE)
    session.open()
    outcome, delta = hear(session, response(resource("a"), resource("b"), nonce="77", removed=["c"]))
    assert delta is not None
    assert (delta.kind, delta.removed) == (ResourceKind.ADDRESS, ("c",))
    assert [(r.name, r.body) for r in delta.resources] == [("a", b"a"), ("b", b"b")]
    (ack,) = requests([outcome.request])
    assert (ack.type_url, ack.response_nonce, ack.error_detail, ack.node) == (ADDRESS_TYPE, "77", None, None)
    assert ack.initial_resource_versions == {}
    assert outcome.nack is None


def test_a_refused_resource_gives_a_nack_with_names_and_reasons_and_code_zero():
    session = XdsSession(NODE)
    session.open()
    message = response(resource("a"), resource("b"), resource("c"), nonce="5")
    outcome, _ = hear(session, message, refusing("a", "c"))
    assert outcome.nack == "a: no good; c: no good"
    (nack,) = requests([outcome.request])
    assert nack.error_detail is not None
    assert (nack.error_detail.code, nack.error_detail.message) == (0, "a: no good; c: no good")
    assert (nack.type_url, nack.response_nonce) == (ADDRESS_TYPE, "5")
    assert session.versions(ADDRESS_TYPE) == {"b": "1"}


def test_a_refused_update_keeps_the_version_of_what_is_in_force():
    session = XdsSession(NODE)
    session.open()
    hear(session, response(resource("a", "old")))
    hear(session, response(resource("a", "new")), refusing("a"))
    session.close()
    assert requests(session.open())[0].initial_resource_versions == {"a": "old"}


def test_a_reconnect_tells_every_known_name_with_its_version_and_not_what_was_removed():
    session = XdsSession(NODE)
    session.open()
    hear(session, response(resource("a", "1"), resource("b", "2"), resource("c", "3")))
    hear(session, response(resource("ns/p", ""), type_url=AUTHORIZATION_TYPE))
    hear(session, response(resource("b", "4"), removed=["c", "never-there"]))
    session.close()
    address, authorization = requests(session.open())
    assert address.initial_resource_versions == {"a": "1", "b": "4"}
    assert authorization.initial_resource_versions == {"ns/p": ""}
    assert address.node is not None


def test_the_first_sync_is_over_when_both_types_are_acknowledged_once():
    session = XdsSession(NODE)
    session.open()
    assert session.awaiting == (AUTHORIZATION_TYPE, ADDRESS_TYPE)
    outcome, _ = hear(session, response(resource("a")))
    assert (outcome.became_ready, session.ready) == (False, False)
    outcome, _ = hear(session, response(type_url=AUTHORIZATION_TYPE))
    assert (outcome.became_ready, session.ready) == (True, True)
    outcome, _ = hear(session, response(type_url=AUTHORIZATION_TYPE))
    assert (outcome.became_ready, session.ready) == (False, True)
    session.close()
    session.open()
    assert session.ready


def test_a_nacked_first_response_does_not_count_but_a_later_empty_one_does():
    session = XdsSession(NODE)
    session.open()
    hear(session, response(type_url=AUTHORIZATION_TYPE))
    outcome, _ = hear(session, response(resource("a")), refusing("a"))
    assert not outcome.became_ready
    outcome, _ = hear(session, response())
    assert outcome.became_ready


def test_an_empty_response_is_applied_too():
    session = XdsSession(NODE)
    session.open()
    delta = changed(session, response(type_url=AUTHORIZATION_TYPE))
    assert delta is not None
    assert (delta.number, delta.kind) == (1, ResourceKind.AUTHORIZATION)
    assert (list(delta.resources), delta.removed) == ([], ())


def test_session_and_store_keep_one_text_for_a_name_and_an_unchanged_version_stays():
    session = XdsSession(NODE)
    session.open()
    message = response(*(resource(f"name-{n}", f"version-{n}") for n in range(3)))
    taken: list[str] = []

    def take(delta: MeshDelta) -> list[Rejected]:
        taken.extend(one.name for one in delta.resources)
        return []

    hear(session, message, take)
    first = session.versions(ADDRESS_TYPE)
    assert [id(name) for name in first] == [id(name) for name in taken]
    hear(session, message, take)
    again = session.versions(ADDRESS_TYPE)
    assert [id(name) for name in again] == [id(name) for name in first]
    assert [id(version) for version in again.values()] == [id(version) for version in first.values()]


def test_names_and_versions_are_noted_in_slices():
    session = XdsSession(NODE)
    session.open()
    reading = session.receive(response(*(resource(f"name-{n}") for n in range(2_500)), removed=["x"]))
    while not reading.scan():
        pass
    reading.delta()
    steps = 1
    while not reading.record([Rejected("name-7", "no good")]):
        steps += 1
    assert steps == 2 + 2_500 // READ_SLICE
    session.complete(reading, [Rejected("name-7", "no good")])
    assert session.versions(ADDRESS_TYPE).keys() == {f"name-{n}" for n in range(2_500)} - {"name-7"}


def test_a_response_of_an_unknown_type_changes_nothing_and_is_acknowledged():
    session = XdsSession(NODE)
    session.open()
    outcome, delta = hear(session, response(resource("a"), type_url="t/Unknown", nonce="9", removed=["b"]))
    assert (delta, outcome.known_type, outcome.nack) == (None, False, None)
    (ack,) = requests([outcome.request])
    assert (ack.type_url, ack.response_nonce, ack.error_detail) == ("t/Unknown", "9", None)


def test_a_malformed_message_changes_nothing():
    session = XdsSession(NODE)
    session.open()
    hear(session, response(resource("a")))
    with pytest.raises(MalformedResponseError):
        hear(session, response(resource("b"), removed=["a"])[:-1])
    assert session.versions(ADDRESS_TYPE) == {"a": "1"}
    assert not session.ready


def test_a_response_read_in_slices_is_one_delta_in_order():
    session = XdsSession(NODE, numbers=count(40))
    session.open()
    message = response(*(resource(str(n)) for n in range(25)), removed=["gone"])
    reading = session.receive(message)
    assert not reading.scan(10)
    assert not reading.scan(10)
    assert reading.scan(10)
    delta = reading.delta()
    assert delta is not None
    assert [r.name for r in delta.resources] == [str(n) for n in range(25)]
    assert (delta.number, delta.removed) == (40, ("gone",))
    outcome = session.complete(reading, [Rejected("17", "no good"), Rejected("3", "undecodable")])
    assert outcome.nack == "17: no good; 3: undecodable"
    assert changed(session, response()).number == 41


def test_a_name_both_sent_and_removed_is_known_afterwards_since_the_server_sent_it():
    session = XdsSession(NODE)
    session.open()
    hear(session, response(resource("a", "2"), removed=["a"]))
    assert session.versions(ADDRESS_TYPE) == {"a": "2"}


class TestTooManyNamesForOneRequest:
    def reconnected(self) -> XdsSession:
        session = XdsSession(NODE, bounds=ControlBounds(xds_request=60))
        session.open()
        names = [resource(f"name-{n}", f"v{n}") for n in range(10)]
        hear(session, response(*names))
        hear(session, response(resource("p", ""), type_url=AUTHORIZATION_TYPE))
        session.close()
        address, authorization = requests(session.open())
        assert address.initial_resource_versions == {}
        assert authorization.initial_resource_versions == {"p": ""}
        return session

    def test_what_the_answer_lacks_is_removed_and_what_is_unchanged_is_not_applied_again(self):
        session = self.reconnected()
        now = [resource(f"name-{n}", f"v{n}") for n in range(2, 8)]
        now[3] = resource("name-5", "changed")
        delta = changed(session, response(*now, resource("new", "v"), removed=["name-0"]), slice_size=3)
        assert [r.name for r in delta.resources] == ["name-5", "new"]
        assert sorted(delta.removed) == ["name-0", "name-1", "name-8", "name-9"]
        assert session.versions(ADDRESS_TYPE) == {
            **{f"name-{n}": f"v{n}" for n in range(2, 8)},
            "name-5": "changed",
            "new": "v",
        }

    def test_only_the_first_answer_of_the_type_is_taken_for_the_whole(self):
        session = self.reconnected()
        message = response(resource("p2", ""), type_url=AUTHORIZATION_TYPE)
        assert changed(session, message).removed == ()
        hear(session, response(*(resource(f"name-{n}", f"v{n}") for n in range(10))))
        delta = changed(session, response(resource("name-1", "v1")))
        assert [r.name for r in delta.resources] == ["name-1"]
        assert delta.removed == ()

    def test_a_refused_resource_of_the_answer_is_not_removed(self):
        session = self.reconnected()
        message = response(*(resource(f"name-{n}", f"w{n}") for n in range(10)))
        outcome, delta = hear(session, message, refusing("name-4"))
        assert delta is not None
        assert delta.removed == ()
        assert outcome.nack == "name-4: no good"
        assert session.versions(ADDRESS_TYPE)["name-4"] == "v4"

    def test_a_malformed_answer_removes_nothing_and_the_next_stream_asks_again(self):
        session = self.reconnected()
        with pytest.raises(MalformedResponseError):
            hear(session, response(resource("x"))[:-1])
        session.close()
        session.open()
        delta = changed(session, response(*(resource(f"name-{n}", f"v{n}") for n in range(9))))
        assert delta.removed == ("name-9",)

    def test_on_demand_the_names_go_in_several_requests_each_within_the_budget(self):
        session = XdsSession(NODE, on_demand=True, bounds=ControlBounds(xds_request=60))
        session.open()
        hear(session, response(*(resource(f"name-{n}", f"v{n}") for n in range(10))))
        session.close()
        *addresses, authorization = requests(session.open())
        assert authorization.type_url == AUTHORIZATION_TYPE
        assert [bool(request.node) for request in addresses] == [True] + [False] * (len(addresses) - 1)
        assert [request.resource_names_subscribe for request in addresses][:2] == [["*"], []]
        told: dict[str, str] = {}
        for request in addresses:
            assert 0 < len(request.initial_resource_versions) < 5
            told |= request.initial_resource_versions
        assert told == session.versions(ADDRESS_TYPE)


class TestOnDemand:
    def opened(self, bounds: ControlBounds = DEFAULTS.control) -> XdsSession:
        session = XdsSession(NODE, on_demand=True, bounds=bounds)
        address, authorization = requests(session.open())
        assert address.resource_names_subscribe == ["*"]
        assert address.resource_names_unsubscribe == ["*"]
        assert authorization.resource_names_subscribe == []
        return session

    def test_only_policies_are_expected_for_the_first_sync(self):
        session = self.opened()
        outcome, _ = hear(session, response(type_url=AUTHORIZATION_TYPE))
        assert outcome.became_ready

    def test_a_key_is_asked_for_once_however_many_wait(self):
        session = self.opened()
        (request,) = requests([session.demand("net/10.0.0.9") or b""])
        assert (request.type_url, request.resource_names_subscribe) == (ADDRESS_TYPE, ["net/10.0.0.9"])
        assert request.node is None
        assert session.demand("net/10.0.0.9") == b""
        assert session.pending == {"net/10.0.0.9"}

    @pytest.mark.parametrize(
        "message",
        [
            response(resource("key")),
            response(resource("uid-1", aliases=["other", "key"])),
            response(removed=["x", "key"]),
        ],
        ids=["by its name", "by an alias", "as unknown"],
    )
    def test_a_key_is_answered(self, message):
        session = self.opened()
        session.demand("key")
        outcome, _ = hear(session, message)
        assert outcome.answered == {"key"}
        assert session.pending == frozenset()

    def test_a_refused_resource_answers_its_key_too(self):
        session = self.opened()
        session.demand("key")
        outcome, _ = hear(session, response(resource("key")), refusing("key"))
        assert outcome.answered == {"key"}

    def test_other_responses_answer_nothing(self):
        session = self.opened()
        session.demand("key")
        assert hear(session, response(resource("other")))[0].answered == frozenset()
        message = response(resource("key"), type_url=AUTHORIZATION_TYPE)
        assert hear(session, message)[0].answered == frozenset()
        assert session.pending == {"key"}

    def test_a_key_still_waited_for_is_part_of_the_next_streams_first_request(self):
        session = self.opened()
        session.demand("key")
        hear(session, response(resource("uid", "5")))
        session.close()
        assert session.demand("second") == b""
        address, _ = requests(session.open())
        assert address.initial_resource_versions == {"uid": "5", "key": "", "second": ""}
        assert hear(session, response(resource("u", aliases=["second"])))[0].answered == {"second"}

    def test_a_key_asked_for_before_goes_with_a_change_or_istiod_would_stay_silent(self):
        session = self.opened()
        session.demand("key")
        hear(session, response(removed=["key"]))
        (request,) = requests([session.demand("key") or b""])
        assert request.resource_names_subscribe == ["key", "*"]
        assert request.resource_names_unsubscribe == ["*"]

    def test_a_key_given_up_is_asked_for_anew(self):
        session = self.opened()
        session.demand("key")
        session.abandon("key")
        assert session.pending == frozenset()
        (request,) = requests([session.demand("key") or b""])
        assert request.resource_names_subscribe == ["key", "*"]

    def test_a_new_stream_has_not_been_asked_for_anything(self):
        session = self.opened()
        session.demand("key")
        hear(session, response(removed=["key"]))
        session.close()
        session.open()
        (request,) = requests([session.demand("key") or b""])
        assert request.resource_names_subscribe == ["key"]

    def test_what_is_waited_for_is_bounded(self):
        session = self.opened(ControlBounds(demands_waiting=2))
        assert session.demand("a")
        assert session.demand("b")
        assert session.demand("c") is None
        session.abandon("a")
        assert session.demand("c")

    def test_what_is_remembered_is_bounded(self):
        session = self.opened(ControlBounds(demands_remembered=2))
        asked = requests([session.demand(key) or b"" for key in "abc"])
        assert [r.resource_names_subscribe for r in asked] == [["a"], ["b"], ["c", "*"]]


names = st.sampled_from([f"n{n}" for n in range(8)])


@given(
    st.lists(
        st.tuples(
            st.dictionaries(names, st.tuples(st.integers(0, 3), st.booleans()), max_size=5),
            st.lists(names, max_size=3, unique=True),
            st.booleans(),
        ),
        max_size=15,
    )
)
@settings(deadline=None)
def test_what_a_reconnect_tells_is_what_was_taken_and_not_removed(steps):
    """Whatever happens, a name is told with the last version that was not refused."""
    session = XdsSession(NODE)
    session.open()
    model: dict[str, str] = {}
    for sent, removed, reconnect in steps:
        bad = {name for name, (_, is_bad) in sent.items() if is_bad}
        message = response(*(resource(n, f"v{v}") for n, (v, _) in sent.items()), removed=removed)
        outcome, _ = hear(session, message, refusing(*bad), slice_size=2)
        for name in removed:
            model.pop(name, None)
        model |= {name: f"v{v}" for name, (v, is_bad) in sent.items() if not is_bad}
        assert (outcome.nack is not None) == bool(bad)
        if reconnect:
            session.close()
            assert requests(session.open())[0].initial_resource_versions == model
    assert session.versions(ADDRESS_TYPE) == model
