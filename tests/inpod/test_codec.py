from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.inpod.codec import (
    LARGEST_PACKET,
    AddPod,
    DeletePod,
    KeepPod,
    SnapshotSent,
    decode_request,
    encode_ack,
    encode_hello,
)
from ztunnel.inpod.zds_errors import ZdsReadError
from ztunnel.messages import PodInfo
from ztunnel.pb.istio.workload import zds

ADD = bytes.fromhex("0a1c0a057569642d6112130a05706f642d6112046e732d611a0473612d61")
KEEP = bytes.fromhex("2a070a057569642d61")
DELETE = bytes.fromhex("120712057569642d63")
SNAPSHOT = bytes.fromhex("1a00")


def test_hello_and_ack_are_the_bytes_of_the_wire_samples():
    assert encode_hello().hex() == "0801"
    assert encode_ack(None).hex() == "0a00"


def test_an_error_is_carried_by_the_ack():
    assert zds.WorkloadResponse.parse(encode_ack("no")).ack == zds.Ack(error="no")


@given(st.text(max_size=4000))
@settings(deadline=None)
def test_an_ack_fits_into_the_agents_buffer_whatever_the_error(text):
    packet = encode_ack(text)
    assert len(packet) <= LARGEST_PACKET
    ack = zds.WorkloadResponse.parse(packet).ack
    assert ack is not None
    assert text.encode("utf-8", "replace").decode("utf-8").startswith(ack.error)
    assert ack.error or not text


@pytest.mark.parametrize(
    ("packet", "descriptors", "request_"),
    [
        (ADD, 1, AddPod("uid-a", PodInfo("pod-a", "ns-a", "sa-a"))),
        (ADD, 2, AddPod("uid-a", PodInfo("pod-a", "ns-a", "sa-a"))),
        (bytes.fromhex("0a070a057569642d61"), 1, AddPod("uid-a", None)),
        (KEEP, 0, KeepPod("uid-a")),
        (DELETE, 0, DeletePod("uid-c")),
        (SNAPSHOT, 0, SnapshotSent()),
    ],
)
def test_requests_of_the_wire_samples(packet, descriptors, request_):
    assert decode_request(packet, descriptors) == request_


@pytest.mark.parametrize(
    ("packet", "descriptors", "text"),
    [
        (ADD, 0, "failure to read message : No control message"),
        (KEEP, 1, "failure to read message : Unexpected control message"),
        (DELETE, 1, "failure to read message : Unexpected control message"),
        (SNAPSHOT, 2, "failure to read message : Unexpected control message"),
    ],
)
def test_a_descriptor_belongs_to_an_add_and_to_nothing_else(packet, descriptors, text):
    with pytest.raises(ZdsReadError) as caught:
        decode_request(packet, descriptors)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "packet",
    [
        b"",  # no payload
        SNAPSHOT + KEEP,  # two of them
        b"\x0a\xff",  # cut off
        b"\x08\x00",  # an integer where a message belongs
        bytes.fromhex("2a020801"),  # an integer where the uid belongs
        bytes.fromhex("0a040a016112020801"),
        b"\xff" * 40,
    ],
)
def test_what_is_no_request_is_refused(packet):
    with pytest.raises(ZdsReadError):
        decode_request(packet, 0)


@given(st.binary(max_size=200), st.integers(0, 2))
@settings(deadline=None)
def test_any_bytes_give_a_request_or_a_read_error(data, descriptors):
    try:
        request = decode_request(data, descriptors)
    except ZdsReadError:
        return
    assert isinstance(request, AddPod) == bool(descriptors)
    if not isinstance(request, SnapshotSent):
        assert isinstance(request.uid, str)


@given(st.integers(0, len(ADD) - 1), st.integers(0, 255))
@settings(deadline=None)
def test_a_damaged_request_gives_a_request_or_a_read_error(position, value):
    damaged = bytearray(ADD)
    damaged[position] = value
    try:
        request = decode_request(bytes(damaged), 1)
    except ZdsReadError:
        return
    assert isinstance(request, AddPod)
    assert request.info is None or all(
        isinstance(text, str) for text in (request.info.name, request.info.namespace)
    )
