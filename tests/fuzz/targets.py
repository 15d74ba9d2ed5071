"""What is fuzzed: each parser of bytes that others chose, with what has to hold whatever they are.

A target takes any bytes, and raises only when something is wrong. It may let through the refusals that the
parser documents, and nothing else. So each works with whatever makes the bytes: hypothesis in every test run
(`test_targets.py`), atheris guided by coverage (``make fuzz``), and the corpus, which holds examples and all
that was ever found.

There is no target for the PROXY protocol: we write its header and never read one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

import h11
import msgspec
import trio
import trio.testing

from tests.hbone.test_equivalence import test_ours_and_stock_h2_agree
from tests.hbone.test_fuzz import OPENING, client, drive, server
from tests.support.hbone_conversation import settings
from ztunnel.admin.http import HttpServer, Request, Response, _Connection
from ztunnel.certs.certificate_errors import CaChainError, WrongIdentityError
from ztunnel.certs.chain import read_chain
from ztunnel.certs.crl import parse_crl_file
from ztunnel.config.config_errors import ConfigError
from ztunnel.config.load import load_config
from ztunnel.config.mesh import parse_mesh_file, parse_proxy_config
from ztunnel.dataplane.mesh_dump import dump_policies, dump_services, dump_staged, dump_workloads
from ztunnel.decide.headers import (
    ConnectHeaders,
    parse_authority,
    parse_baggage,
    parse_forwarded_host,
    parse_traceparent,
)
from ztunnel.dns.message import Query, Rcode, is_reply_to, parse_query, read_reply
from ztunnel.dns.reply import error_reply
from ztunnel.dns.resolv_conf import parse_resolv_conf
from ztunnel.explain.saved_dump import DumpError, read_dump
from ztunnel.inpod.codec import decode_request, encode_ack
from ztunnel.inpod.zds_errors import ZdsReadError
from ztunnel.inpod.zds_session import ZdsSession
from ztunnel.messages import MeshDelta, Resource, ResourceKind
from ztunnel.model.identity import Identity
from ztunnel.proxy.socks import SocksError, SocksServer
from ztunnel.state.local_reader import LocalConfigError
from ztunnel.state.store import MeshStore
from ztunnel.tls.peer import MalformedCertificateError, parse_certificate
from ztunnel.tls.revocation import InvalidRevocationListError
from ztunnel.xds.delta import MalformedResponseError
from ztunnel.xds.local_file import deltas, parse, static_config
from ztunnel.xds.local_yaml import YamlError, read_yaml
from ztunnel.xds.xds_session import XdsSession

_OUR_KEY = (Path(__file__).parent / "key.pem").read_bytes()
"""Made for tests/fuzz/corpus/ca-answer; nobody trusts it."""

Target = Callable[[bytes], None]


def _text(data: bytes) -> str:
    """Text as it comes out of a file or the environment."""
    return data.decode("utf-8", "surrogateescape")


# -- the wire ----------------------------------------------------------------------------------------------


def hbone(data: bytes) -> None:
    """Bytes of a peer, in pieces: the first byte says of which size, and to which side."""
    how, wire = data[:1] or b"\0", data[1:]
    step = how[0] % 64 + 1
    if how[0] < 128:
        drive(server(), OPENING + wire, step)
    else:
        drive(client(), settings() + wire, step)


def hbone_and_h2(data: bytes) -> None:
    """A conversation as the bytes choose it, told by our reader and by stock h2."""
    test_ours_and_stock_h2_agree.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]


def connect_headers(data: bytes) -> None:
    """Header fields of a CONNECT, one a line: baggage, forwarded, traceparent, and an authority."""
    lines = data.split(b"\n")
    names = (b"traceparent", b"forwarded", b"x-forwarded-network", b"baggage")
    fields = [(names[index % 4], line) for index, line in enumerate(lines)]
    read = ConnectHeaders.read(fields)
    values: list[bytes | str] = [*lines, _text(data)]
    for value in values:
        trace = parse_traceparent(value)
        assert trace is None or parse_traceparent(str(trace)) == trace
        host = parse_forwarded_host(value)
        assert host is None or host
    baggage = parse_baggage(read.baggage)
    assert all(value is None or value for value in baggage)
    authority = parse_authority(_text(data))
    assert authority is None or parse_authority(str(authority)) == authority


def socks(data: bytes) -> None:
    """A client's negotiation: whole, and in the pieces that we would read."""
    outcomes = []
    for step in (len(data) or 1, 1, None):
        socks_server, at, target = SocksServer(), 0, None
        try:
            while target is None and at < len(data):
                piece = data[at : at + (step or socks_server.missing)]
                at += len(piece)
                target = socks_server.receive(piece)
                assert len(socks_server.take_output()) <= 4
                assert target is not None or 1 <= socks_server.missing <= 512
        except SocksError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(str(target))
    assert len(set(outcomes)) == 1, outcomes


def dns(data: bytes) -> None:
    """A client's query, and a resolver's reply to it."""
    query = parse_query(data)
    if isinstance(query, Query):
        assert query.with_id(query.id) == data
        reply = error_reply(query, Rcode.SERVFAIL)
        assert is_reply_to(query, query.id, reply)
        assert read_reply(reply).rcode == Rcode.SERVFAIL
        size = len(data) // 2
        for other in (data, data[:size], data[size:], reply[:size]):
            if is_reply_to(query, query.id, other):
                read_reply(other)


def resolv_conf(data: bytes) -> None:
    """The pod's or our own /etc/resolv.conf."""
    found = parse_resolv_conf(_text(data))
    assert 1 <= found.tries <= 64


# -- the control plane and the CNI agent ---------------------------------------------------------------------


def xds(data: bytes) -> None:
    """A response, from the envelope to what is in force."""
    session, store = XdsSession(b""), MeshStore("node")
    session.open()
    reading = session.receive(data)
    try:
        while not reading.scan(3):
            pass
    except MalformedResponseError:
        return
    delta = reading.delta()
    if delta is not None:
        application = store.apply(delta)
        assert {name for name, _ in application.rejected} <= {resource.name for resource in delta.resources}
    session.complete(reading)
    _shown(store)


def resources(data: bytes) -> None:
    """One resource of each kind, put into force and shown."""
    for kind in ResourceKind:
        store = MeshStore("node")
        one = MeshDelta(1, kind, (Resource("name", data),))
        first = store.apply(one)
        again = store.apply(one)
        assert first.rejected == again.rejected
        _shown(store)
        store.apply(MeshDelta(2, kind, (), (*store.workloads.uids(), "name")))
        assert len(store.workloads) == 0


def _shown(store: MeshStore) -> None:
    """Everything that was taken can be read and shown."""
    for uid in store.workloads.uids():
        workload = store.workload(uid)
        assert workload is not None
        list(store.services_of(workload))
    for items in (dump_workloads, dump_services, dump_policies, dump_staged):
        for item in items(store):
            msgspec.json.encode(item)


def zds(data: bytes) -> None:
    """A packet of the CNI agent, with and without a descriptor."""
    session = ZdsSession()
    session.connected()
    for descriptors in (0, 1):
        try:
            request = decode_request(data, descriptors)
        except ZdsReadError as error:
            answer = encode_ack(str(error))
        else:
            answer = b""
            if descriptors == 0:
                session.receive(request, None)
        assert len(answer) <= 1024


# -- files and the environment -------------------------------------------------------------------------------


def yaml(data: bytes) -> None:
    """YAML text, and the local file."""
    text = _text(data)
    try:
        read_yaml(text)
    except YamlError:
        return
    try:
        config = parse(text)
    except LocalConfigError:
        return
    store = MeshStore(None)
    for delta in deltas(config, None, iter(range(1, 9))):
        assert store.apply(delta).rejected == []
    assert deltas(config, config, iter(range(1, 9))) == []
    msgspec.json.encode(static_config(config))
    _shown(store)


def mesh_config(data: bytes) -> None:
    """The mesh configuration, and PROXY_CONFIG."""
    for read in (lambda text: parse_mesh_file(text, "path"), parse_proxy_config):
        try:
            read(_text(data))
        except ConfigError:
            pass


def environment(data: bytes) -> None:
    """Environment variables: one a line."""
    pairs = (line.partition(b"=") for line in data.split(b"\n"))
    variables = {_text(name): _text(value) for name, _, value in pairs if b"\0" not in name + value}
    try:
        load_config(variables, read_file=lambda path: None, cpu_count=4)
    except ConfigError as error:
        code = error.code
    else:
        return
    assert code.startswith("ZT-CFG")


def crl(data: bytes) -> None:
    """The revocation file."""
    try:
        parse_crl_file(data)
    except InvalidRevocationListError:
        pass


def certificate(data: bytes) -> None:
    """A peer's certificate, in DER."""
    try:
        parsed = parse_certificate(data)
    except MalformedCertificateError:
        return
    for identity in parsed.identities:
        assert Identity.parse(str(identity)) == identity


def ca_answer(data: bytes) -> None:
    """What a CA answers to a request of ours: PEM texts, with a null byte between them."""
    identity = Identity("cluster.local", "ns", "sa")
    answer = [one.decode("utf-8", "replace") for one in data.split(b"\0")]
    for check in (True, False):
        try:
            read_chain(identity, _OUR_KEY, answer, check_identity=check)
        except (CaChainError, WrongIdentityError):
            pass


def saved_dump(data: bytes) -> None:
    """A config dump that somebody wants explained."""
    try:
        mesh = read_dump(data)
    except DumpError:
        return
    mesh.store.workload_by_address("", ip_address("10.0.0.1"))


# -- the admin server ----------------------------------------------------------------------------------------


def admin(data: bytes) -> None:
    """Bytes of a client of the admin server. Each answer is whole, and there is none too many."""

    async def handler(request: Request) -> Response:
        assert request.path.isprintable() or request.path
        return Response(200, request.path.encode("utf-8", "surrogatepass") * 2, "text/plain")

    async def main() -> bytes:
        ours, theirs = trio.testing.memory_stream_pair()
        http = HttpServer("fuzz", handler)
        await theirs.send_all(data)
        await theirs.send_eof()
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await _Connection(http, ours).run()  # type: ignore[arg-type]  # a stream in memory does
                await ours.aclose()

            nursery.start_soon(serve)
            answer = b""
            while piece := await theirs.receive_some(65_536):
                answer += piece
        return answer

    answer = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    if answer:
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
        peer.receive_data(answer)
        assert isinstance(peer.next_event(), h11.Response)


TARGETS: Mapping[str, Target] = {
    "admin": admin,
    "ca-answer": ca_answer,
    "certificate": certificate,
    "connect-headers": connect_headers,
    "crl": crl,
    "dns": dns,
    "environment": environment,
    "hbone": hbone,
    "hbone-and-h2": hbone_and_h2,
    "mesh-config": mesh_config,
    "resolv-conf": resolv_conf,
    "resources": resources,
    "saved-dump": saved_dump,
    "socks": socks,
    "xds": xds,
    "yaml": yaml,
    "zds": zds,
}
