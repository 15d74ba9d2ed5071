"""The scanner and the encoder against betterproto2, on messages of every shape and on broken ones."""

import datetime as dt

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ztunnel import messages
from ztunnel.pb.envoy.service.discovery.v3 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    Node,
    Resource,
    ResourceCacheControl,
)
from ztunnel.pb.google.protobuf import Any
from ztunnel.protobuf import write_varint
from ztunnel.xds.delta import MalformedResponseError, ResponseScanner, encode_request, field

names = st.text(max_size=200)
resources = st.builds(
    Resource,
    name=names,
    version=names,
    aliases=st.lists(names, max_size=3),
    resource=st.none() | st.builds(Any, type_url=names, value=st.binary(max_size=400)),
    ttl=st.none() | st.just(dt.timedelta(seconds=5)),
    cache_control=st.none() | st.just(ResourceCacheControl(do_not_cache=True)),
)
responses = st.builds(
    DeltaDiscoveryResponse,
    system_version_info=names,
    type_url=names,
    nonce=names,
    resources=st.lists(resources, max_size=12),
    removed_resources=st.lists(names, max_size=5),
)


def scan(message: bytes, slice_size: int = 1000) -> ResponseScanner:
    scanner = ResponseScanner(message)
    while not scanner.scan(slice_size):
        pass
    return scanner


@given(response=responses, slice_size=st.integers(1, 20))
@settings(deadline=None)
def test_the_scanner_finds_what_betterproto2_finds(response, slice_size):
    scanner = scan(bytes(response), slice_size)
    bodies = [resource.resource.value if resource.resource else b"" for resource in response.resources]
    assert scanner.type_url == response.type_url
    assert scanner.nonce == response.nonce
    assert scanner.removed == response.removed_resources
    found = scanner.resources
    names = list(found.names())
    assert names == [resource.name for resource in response.resources]
    versions = [found.version(number) for number in range(found.total)]
    assert versions == [resource.version for resource in response.resources]
    assert scanner.aliases == [alias for resource in response.resources for alias in resource.aliases]
    assert [(r.name, r.body) for r in found] == list(zip(names, bodies, strict=True))
    assert list(found[1::2]) == list(found)[1::2]
    assert scanner.value_bytes == sum(map(len, bodies))


@given(parts=st.lists(resources, min_size=1, max_size=6), cut=st.integers(0, 5000))
@settings(deadline=None)
def test_a_message_that_is_cut_off_is_malformed_unless_it_ends_between_two_resources(parts, cut):
    encoded = [bytes(DeltaDiscoveryResponse(resources=[part])) for part in parts]
    ends = {sum(map(len, encoded[:count])): count for count in range(len(encoded) + 1)}
    whole = b"".join(encoded)
    cut %= len(whole) + 1
    if cut in ends:
        assert list(scan(whole[:cut]).resources.names()) == [part.name for part in parts[: ends[cut]]]
    else:
        with pytest.raises(MalformedResponseError, match=r"^failed to decode Protobuf message: "):
            scan(whole[:cut])


@given(st.binary(max_size=300))
@example(b"\x12\x02\x0a\x05")
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x12\xff\xff\xff\xff\x0f")
@settings(deadline=None)
def test_no_bytes_make_the_scanner_do_anything_but_finish_or_raise_its_own_error(message):
    try:
        scanner = scan(message, 3)
    except MalformedResponseError:
        return
    assert len(list(scanner.resources)) == scanner.resources.total == len(list(scanner.resources.names()))


@given(message=responses.map(bytes), position=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(deadline=None)
def test_a_changed_byte_never_does_more_than_that(message, position, byte):
    changed = bytearray(message)
    if changed:
        changed[position % len(changed)] = byte
    try:
        scanner = scan(bytes(changed))
    except MalformedResponseError:
        return
    assert len(list(scanner.resources)) == scanner.resources.total == len(list(scanner.resources.names()))


def test_unknown_fields_of_every_wire_type_are_skipped_at_every_level():
    unknown = (
        bytes((15 << 3 | 0, 0x96, 0x01))  # a varint
        + bytes((15 << 3 | 1,))
        + bytes(8)
        + bytes((15 << 3 | 5,))
        + bytes(4)
        + write_varint(1000 << 3 | 2)
        + b"\x03abc"
    )
    any_ = unknown + field(0x12, b"body") + unknown
    resource = unknown + field(0x1A, b"name") + field(0x12, any_) + unknown
    scanner = scan(unknown + field(0x12, resource) + unknown + field(0x2A, b"n") + unknown)
    assert list(scanner.resources) == [messages.Resource("name", b"body")]
    assert scanner.nonce == "n"


@pytest.mark.parametrize(
    "message",
    [
        b"\x12\x03\x1a\x05ab",  # the name is longer than its resource
        b"\x12\x04\x12\x02\x12\x05",  # the value is longer than its Any
        b"\x12\x04\x12\x02\x7d\x00",  # a fixed32 that runs out of the Any
        b"\x22\x02\xff\xff",  # not UTF-8
        b"\x13",  # a group
        b"\x00\x00",  # field number 0
        b"\x12",
        b"\x12\x01\x1a",
    ],
)
def test_broken_messages_are_malformed(message):
    with pytest.raises(MalformedResponseError):
        scan(message)


def test_a_field_repeated_is_merged_as_protobuf_does():
    resource = (
        field(0x1A, b"a")
        + field(0x12, field(0x12, b"1"))
        + field(0x12, field(0x0A, b"t"))
        + field(0x1A, b"b")
    )
    scanner = scan(field(0x12, resource))
    assert list(scanner.resources) == [messages.Resource("b", b"1")]


@given(
    type_url=names,
    node=st.none() | st.builds(Node, id=names.filter(bool)),
    subscribe=st.lists(names, max_size=4),
    unsubscribe=st.lists(names, max_size=4),
    versions=st.dictionaries(names, names, max_size=6),
    nonce=names,
    error=st.none() | names,
)
@settings(deadline=None)
def test_requests_are_what_betterproto2_reads(
    *, type_url, node, subscribe, unsubscribe, versions, nonce, error
):
    message = encode_request(
        type_url,
        node=bytes(node) if node else b"",
        subscribe=subscribe,
        unsubscribe=unsubscribe,
        versions=versions,
        nonce=nonce,
        error=error,
    )
    request = DeltaDiscoveryRequest.parse(message)
    assert request.type_url == type_url
    assert (request.node.id if request.node else None) == (node.id if node else None)
    assert request.resource_names_subscribe == subscribe
    assert request.resource_names_unsubscribe == unsubscribe
    assert request.initial_resource_versions == versions
    assert request.response_nonce == nonce
    assert (request.error_detail is None) == (error is None)
    if request.error_detail is not None:
        assert request.error_detail.message == error
        assert request.error_detail.code == 0


@given(st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_varints_have_seven_bits_a_byte(value):
    encoded = write_varint(value)
    assert sum((byte & 0x7F) << (7 * index) for index, byte in enumerate(encoded)) == value
    assert [byte >= 0x80 for byte in encoded] == [True] * (len(encoded) - 1) + [False]
