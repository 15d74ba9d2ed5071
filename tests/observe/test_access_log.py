from __future__ import annotations

import pytest

from tests.observe.test_labels import CLIENT, SERVER
from tests.support.logs import capture_logs
from ztunnel.model.address import SocketAddress
from ztunnel.observe.access_log import (
    AccessLog,
    AccessLogEntry,
    Direction,
    complete_fields,
    failed_fields,
    opened_fields,
)
from ztunnel.observe.filter import Level
from ztunnel.observe.labels import end_from_workload
from ztunnel.observe.render import plain_line

SOURCE = SocketAddress.parse("10.9.0.2:57264")
DESTINATION = SocketAddress.parse("10.9.0.3:15008")
OUTBOUND = AccessLogEntry(
    direction=Direction.OUTBOUND,
    source_address=SOURCE,
    destination_address=DESTINATION,
    source=end_from_workload(CLIENT, CLIENT.identity),
    destination=end_from_workload(SERVER, SERVER.identity),
    hbone_address="10.9.0.3:8080",
    service="svc-b.ns-b.svc.cluster.local",
    mtls=True,
)


def text(fields: dict[str, object]) -> str:
    return plain_line("T", Level.INFO, "access", (), ("m", fields)).rstrip("\n").split("\t")[4]


def test_a_complete_line_has_all_fields_in_the_reference_order():
    assert text(complete_fields(OUTBOUND, received=75, sent=205, seconds=0.0089)) == (
        'src.addr=10.9.0.2:57264 src.workload="pod-a" src.namespace="ns-a" '
        'src.identity="spiffe://cluster.local/ns/ns-a/sa/sa-a" src.cluster="Kubernetes" '
        'dst.addr=10.9.0.3:15008 dst.hbone_addr=10.9.0.3:8080 dst.service="svc-b.ns-b.svc.cluster.local" '
        'dst.workload="pod-b" dst.namespace="ns-b" dst.identity="spiffe://cluster.local/ns/ns-b/sa/sa-b" '
        'direction="outbound" bytes_sent=75 bytes_recv=205 duration="8ms"'
    )


def test_the_error_comes_last():
    fields = complete_fields(OUTBOUND, received=0, sent=0, seconds=0, error="http status: 401 Unauthorized")
    assert text(fields).endswith('bytes_recv=0 duration="0ms" error="http status: 401 Unauthorized"')


def test_bytes_are_those_of_the_workload_that_is_served():
    inbound = AccessLogEntry(Direction.INBOUND, SOURCE, DESTINATION)
    fields = complete_fields(inbound, received=75, sent=205, seconds=1)
    assert (fields["bytes_sent"], fields["bytes_recv"]) == (205, 75)
    fields = complete_fields(OUTBOUND, received=75, sent=205, seconds=1)
    assert (fields["bytes_sent"], fields["bytes_recv"]) == (75, 205)


def test_unknown_ends_are_left_out():
    entry = AccessLogEntry(Direction.INBOUND, SOURCE, DESTINATION)
    assert text(opened_fields(entry)) == 'src.addr=10.9.0.2:57264 dst.addr=10.9.0.3:15008 direction="inbound"'


def test_identities_are_shown_only_when_they_are_proved():
    plain = AccessLogEntry(
        Direction.OUTBOUND, SOURCE, DESTINATION, source=OUTBOUND.source, destination=OUTBOUND.destination
    )
    assert "identity" not in text(opened_fields(plain))


@pytest.mark.parametrize("authority", ['a:1 dst.identity="x"', "a\n:1", 'a"b:1', "a=b:1"])
def test_an_authority_cannot_pass_for_other_fields(authority):
    entry = AccessLogEntry(Direction.INBOUND, SOURCE, DESTINATION, hbone_address=authority)
    shown = text(opened_fields(entry)).partition("dst.hbone_addr=")[2]
    assert shown.startswith('"')
    assert shown.endswith('" direction="inbound"')


def test_an_address_is_shown_bare():
    entry = AccessLogEntry(
        Direction.INBOUND, SOURCE, DESTINATION, hbone_address=SocketAddress.parse("[fd00::1]:80")
    )
    assert " dst.hbone_addr=[fd00::1]:80 " in text(opened_fields(entry))


def test_a_refusal_has_four_fields():
    fields = failed_fields(Direction.INBOUND, SOURCE, DESTINATION, "tls handshake error: x")
    assert text(fields) == (
        'src.addr=10.9.0.2:57264 dst.addr=10.9.0.3:15008 direction="inbound" error="tls handshake error: x"'
    )


def test_the_levels_of_the_lines():
    access = AccessLog("ns-a/pod-a")
    with capture_logs() as records:
        access.opened(OUTBOUND)
        access.complete(OUTBOUND, received=1, sent=2, seconds=0)
        access.complete(OUTBOUND, received=1, sent=2, seconds=0, error="x")
        access.failed(Direction.INBOUND, SOURCE, DESTINATION, "x")
    assert [(record.level, record.message) for record in records] == [
        (Level.DEBUG, "connection opened"),
        (Level.INFO, "connection complete"),
        (Level.ERROR, "connection complete"),
        (Level.WARN, "connection failed"),
    ]
    assert {record.scope for record in records} == {"access"}
    assert all(record.spans == () for record in records)


def test_one_workloads_level_applies_to_its_access_log():
    with capture_logs("info,[ns-a/pod-a]=debug") as records:
        AccessLog("ns-a/pod-a").opened(OUTBOUND)
        AccessLog("ns-a/other").opened(OUTBOUND)
        AccessLog().opened(OUTBOUND)
    assert len(records) == 1
