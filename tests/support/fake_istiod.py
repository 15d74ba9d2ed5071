"""A small istiod for tests: delta ADS of both workload types and CreateCertificate, over TLS gRPC.

    with FakeIstiod(ca) as istiod:
        istiod.put("Kubernetes//Pod/default/a", Address(...))
        istiod.remove("Kubernetes//Pod/default/a")

It answers as istiod does (docs/protocol/state-and-xds.md#what-istiod-does). Every first request gets an
answer, even an empty one. What a client has in its current version is not sent again. What a client has and
is gone is listed as removed. On-demand keys are answered by the object's own name, with the key among the
aliases. A service comes together with its workloads, and the workloads of the client's node come without a
request.
tests/xds/test_recorded_istiod.py compares it with recorded conversations of the real one.

It is served by grpcio's threads, so that it works beside any event loop. Every method may be called from any
thread, and none blocks for long.

Attributes make it misbehave; they are read at each call (see `Misbehaviour`). `kill` cuts all connections,
and `start` serves again at the same port.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.fake_ca import FakeCertificateAuthority
from ztunnel.pb.envoy.service.discovery.v3 import DeltaDiscoveryRequest
from ztunnel.pb.istio.security import Authorization
from ztunnel.pb.istio.v1.auth import IstioCertificateRequest, IstioCertificateResponse
from ztunnel.pb.istio.workload import Address
from ztunnel.xds.delta import field as wire_field
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE

TOKEN = "a-service-account-token"
MAX_RECEIVED = 4 * 1024 * 1024
"""istiod's default limit for a message of a client."""


class CertificateLie(Enum):
    """What is wrong with a certificate that is issued."""

    IDENTITY = auto()
    """It is another workload's."""
    EXPIRED = auto()
    KEY = auto()
    """It is for another key than the one of the request."""
    AUTHORITY = auto()
    """Somebody else has signed it, and the root that comes with it is not that one's."""


@dataclass
class Misbehaviour:
    """What the server does wrong, until the attribute is reset."""

    hang: bool = False
    """Take streams and calls, and never answer anything."""
    garbage: bool = False
    """Answer with bytes that are no response."""
    refuse_token: bool = False
    """Refuse every token."""
    end_streams: grpc.StatusCode | None = None
    """End each stream with this status after its first response; OK ends it cleanly."""
    end_message: str = ""
    refuse_certificates: str = ""
    """Refuse CreateCertificate with this message."""
    delay: float = 0.0
    """Seconds that each certificate and each answer on a stream takes longer."""
    certificate: CertificateLie | None = None
    """Issue certificates that are wrong in this way."""


@dataclass
class _Stored:
    body: bytes
    version: str
    aliases: tuple[str, ...]


@dataclass
class Stream:
    """One ADS stream as the server saw it."""

    metadata: dict[str, str]
    requests: list[DeltaDiscoveryRequest] = field(default_factory=list)
    outgoing: queue.SimpleQueue[bytes | _End] = field(default_factory=queue.SimpleQueue)
    wildcard: dict[str, bool] = field(default_factory=dict)
    subscribed: dict[str, set[str]] = field(default_factory=dict)
    is_open: bool = True
    sent: dict[str, str] = field(default_factory=dict)
    """The nonce of the last response of each type."""

    def settled(self, type_url: str) -> bool:
        """Returns whether the last response of a type, if there was one, has been answered."""
        nonce = self.sent.get(type_url)
        return nonce is None or any(request.response_nonce == nonce for request in self.requests[-8:])

    def first(self, type_url: str) -> DeltaDiscoveryRequest | None:
        """Returns the first request of a type."""
        return next((request for request in self.requests if request.type_url == type_url), None)

    def acks(self, type_url: str) -> list[DeltaDiscoveryRequest]:
        """Returns the requests that answer a response and accept it."""
        return [
            r for r in self.requests if r.type_url == type_url and r.response_nonce and not r.error_detail
        ]

    def nacks(self, type_url: str) -> list[DeltaDiscoveryRequest]:
        """Returns the requests that answer a response and refuse something of it."""
        return [r for r in self.requests if r.type_url == type_url and r.error_detail]


@dataclass
class _End:
    code: grpc.StatusCode
    message: str = ""


@dataclass
class Issued:
    """A CreateCertificate call as the server saw it."""

    identity: str
    metadata: dict[str, str]
    validity: int
    certificate: bytes
    impersonated: bool
    """Whether the identity is one that the caller asked for on behalf of somebody."""


class FakeIstiod:
    """See the module. ``names`` are what its certificate is for; ``token`` is the only one it takes.

    ``identities`` are the SPIFFE ids it issues certificates for, None for any; ``lifetime`` overrides what
    is asked for.
    """

    def __init__(
        self,
        ca: FakeCertificateAuthority,
        *,
        names: Sequence[str] = ("localhost", "127.0.0.1", "istiod.istio-system.svc"),
        token: str = TOKEN,
        host: str = "127.0.0.1",
    ) -> None:
        self.ca = ca
        self.names = names
        self.token = token
        self.host = host
        self.port = 0
        self.identities: set[str] | None = None
        self.lifetime: dt.timedelta | None = None
        self.root_bundle: bytes | None = None
        self.misbehaviour = Misbehaviour()
        self.streams: list[Stream] = []
        self.issued: list[Issued] = []
        self.refused_tokens = 0
        self._stored: dict[str, dict[str, _Stored]] = {ADDRESS_TYPE: {}, AUTHORIZATION_TYPE: {}}
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self._nonce = 0

    @property
    def address(self) -> str:
        """The address in the form of ``XDS_ADDRESS`` and ``CA_ADDRESS``."""
        return f"https://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self, ca: FakeCertificateAuthority | None = None) -> None:
        """Serve, at the same port if it served before. ``ca``: the one that signs its certificate."""
        key, chain = (ca or self.ca).server(*self.names)
        server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=64, thread_name_prefix="fake istiod"),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_RECEIVED),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 15_000),
            ],
        )
        server.add_generic_rpc_handlers((_Handlers(self),))
        credentials = grpc.ssl_server_credentials([(key, chain)])
        self.port = server.add_secure_port(f"{self.host}:{self.port}", credentials)
        server.start()
        self._server = server

    def kill(self) -> None:
        """Cut every connection and stop serving."""
        server, self._server = self._server, None
        if server is None:
            return
        with self._changed:
            for stream in self.streams:
                stream.outgoing.put(_End(grpc.StatusCode.UNAVAILABLE, "killed"))
        server.stop(grace=0).wait()

    def put(
        self,
        name: str,
        value: Address | Authorization | bytes,
        *,
        aliases: Sequence[str] = (),
        type_url: str | None = None,
    ) -> None:
        """Create or change a resource, and push it."""
        self.put_all([(name, value)], aliases=aliases, type_url=type_url)

    def put_all(
        self,
        resources: Sequence[tuple[str, Address | Authorization | bytes]],
        *,
        aliases: Sequence[str] = (),
        type_url: str | None = None,
    ) -> None:
        """Create or change resources of one type, and push them in one response."""
        if type_url is None:
            is_policy = bool(resources) and isinstance(resources[0][1], Authorization)
            type_url = AUTHORIZATION_TYPE if is_policy else ADDRESS_TYPE
        with self._changed:
            for name, value in resources:
                body = value if isinstance(value, bytes) else bytes(value)
                version = "" if type_url == AUTHORIZATION_TYPE else hashlib.sha256(body).hexdigest()[:16]
                self._stored[type_url][name] = _Stored(body, version, tuple(aliases))
            self._push(type_url, [name for name, _ in resources], [])

    def remove(self, *names: str, type_url: str = ADDRESS_TYPE) -> None:
        """Delete resources, and push their removal."""
        with self._changed:
            for name in names:
                self._stored[type_url].pop(name, None)
            self._push(type_url, [], names)

    def push(self, *, type_url: str, resources: bytes = b"", removed: Sequence[str] = ()) -> None:
        """Push any response to every open stream, without storing anything. ``resources``: encoded fields."""
        with self._changed:
            for stream in self._open_streams():
                stream.outgoing.put(self._head() + resources + self._tail(stream, type_url, removed))

    def end_streams(self, code: grpc.StatusCode, message: str = "") -> None:
        """End the open streams with a status; OK is a clean end."""
        with self._changed:
            for stream in self._open_streams():
                stream.outgoing.put(_End(code, message))

    def wait_until(self, condition: Callable[[FakeIstiod], object], timeout: float = 20.0) -> None:
        """Block the calling thread until something is true of the server; TimeoutError after ``timeout`` s.

        Use it only for what clients cause: the condition is checked after each request, stream and
        certificate. From an event loop, call it in a thread.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError("the fake istiod did not see what the test waits for")

    def resume(self) -> None:
        """Stop hanging, and answer on the open streams what was asked meanwhile."""
        with self._changed:
            self.misbehaviour.hang = False
            for stream in self._open_streams():
                for request in stream.requests:
                    if request.type_url not in stream.wildcard:
                        self._answer(stream, request)

    def wait_settled(self, type_url: str, timeout: float = 20.0) -> None:
        """Block until every open stream has answered the last response of a type. See `wait_until`."""
        self.wait_until(lambda _: all(s.settled(type_url) for s in self._open_streams()), timeout)

    # What the handlers call, from grpcio's threads.

    def check_token(self, metadata: dict[str, str], context: grpc.ServicerContext) -> None:
        """End the call unless it has the token."""
        if not self.misbehaviour.refuse_token and metadata.get("authorization") == f"Bearer {self.token}":
            return
        with self._changed:
            self.refused_tokens += 1
            self._changed.notify_all()
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "authentication failure: token is not known here")

    def opened(self, stream: Stream) -> None:
        """A stream has begun."""
        with self._changed:
            self.streams.append(stream)
            self._changed.notify_all()

    def closed(self, stream: Stream) -> None:
        """A stream has ended."""
        with self._changed:
            stream.is_open = False
            self._changed.notify_all()

    def hear(self, stream: Stream, message: bytes) -> None:
        """Record a request, and put its answer into the stream's queue."""
        request = DeltaDiscoveryRequest.parse(message)
        with self._changed:
            stream.requests.append(request)
            if not self.misbehaviour.hang:
                self._answer(stream, request)
            self._changed.notify_all()

    def certify(self, metadata: dict[str, str], message: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer CreateCertificate."""
        if self.misbehaviour.hang:
            gone = threading.Event()
            if context.add_callback(gone.set):
                gone.wait()
            return b""
        self.check_token(metadata, context)
        request = IstioCertificateRequest.parse(message)
        csr = x509.load_pem_x509_csr(request.csr.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (identity,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        asked = ""
        if request.metadata is not None:
            asked = request.metadata.fields["ImpersonatedIdentity"].string_value or ""
            identity = asked or identity
        if self.misbehaviour.refuse_certificates:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, self.misbehaviour.refuse_certificates)
        if self.identities is not None and identity not in self.identities:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "request impersonation authentication failure")
        lifetime = self.lifetime or dt.timedelta(seconds=request.validity_duration or 86_400)
        time.sleep(self.misbehaviour.delay)
        chain = [self._sign(csr, identity, lifetime), self.root_bundle or self.ca.root]
        with self._changed:
            self.issued.append(Issued(identity, metadata, request.validity_duration, chain[0], bool(asked)))
            self._changed.notify_all()
        return bytes(IstioCertificateResponse(cert_chain=[part.decode() for part in chain]))

    def _sign(self, csr: x509.CertificateSigningRequest, identity: str, lifetime: dt.timedelta) -> bytes:
        """Returns a certificate. `Misbehaviour` says what is wrong with it, if anything."""
        match self.misbehaviour.certificate:
            case CertificateLie.IDENTITY:
                return self.ca.sign(csr, identity + "-of-somebody-else", lifetime)
            case CertificateLie.EXPIRED:
                return self.ca.sign(csr, identity, lifetime, age=lifetime + dt.timedelta(seconds=1))
            case CertificateLie.KEY:
                builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
                other = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
                return self.ca.sign(other, identity, lifetime)
            case CertificateLie.AUTHORITY:
                return FakeCertificateAuthority().sign(csr, identity, lifetime)
        return self.ca.sign(csr, identity, lifetime)

    def _answer(self, stream: Stream, request: DeltaDiscoveryRequest) -> None:
        type_url = request.type_url
        stored = self._stored.get(type_url, {})
        first = type_url not in stream.wildcard
        if first:
            stream.wildcard[type_url] = not request.resource_names_subscribe
            stream.subscribed[type_url] = set()
        subscribed = stream.subscribed[type_url]
        asked = {*request.resource_names_subscribe, *request.initial_resource_versions}
        changed = bool(asked - subscribed) or bool(subscribed & set(request.resource_names_unsubscribe))
        asked -= {"*", *request.resource_names_unsubscribe}
        if not stream.wildcard[type_url]:
            subscribed |= asked
            subscribed -= set(request.resource_names_unsubscribe)
        if request.response_nonce or not (first or changed):
            return  # an ACK, a NACK, or a key that is subscribed already: istiod stays silent
        if self.misbehaviour.garbage:
            stream.outgoing.put(b"\x12\x7fthis is no DeltaDiscoveryResponse")
            return
        known = request.initial_resource_versions
        if stream.wildcard[type_url]:
            names = [n for n, s in stored.items() if not (s.version and known.get(n) == s.version)]
            removed = [name for name in known if name not in stored]
        else:
            if first:
                subscribed.update(own := self._of_node(request))
                asked |= own  # a node's own workloads come unasked
            holders = {key: [n for n, s in stored.items() if key == n or key in s.aliases] for key in asked}
            found = [name for holder in holders.values() for name in holder]
            found += self._workloads_of(found)
            names = [n for n in dict.fromkeys(found) if known.get(n, "-") != stored[n].version]
            removed = [key for key, holder in holders.items() if not holder]
            subscribed.update(found)
        stream.outgoing.put(self._response(stream, type_url, names, removed))
        if self.misbehaviour.end_streams is not None:
            stream.outgoing.put(_End(self.misbehaviour.end_streams, self.misbehaviour.end_message))

    def _of_node(self, request: DeltaDiscoveryRequest) -> set[str]:
        """Returns the names of the workloads on the node that a first request comes from."""
        if request.node is None or request.node.metadata is None or request.type_url != ADDRESS_TYPE:
            return set()
        node = request.node.metadata.fields["NODE_NAME"].string_value
        return {
            name for name, one in self._addresses() if one.workload is not None and one.workload.node == node
        }

    def _workloads_of(self, names: Sequence[str]) -> list[str]:
        """Returns the workloads of the services among these objects. They are sent with their service."""
        asked = [Address.parse(self._stored[ADDRESS_TYPE][name].body).service for name in names]
        services = {f"{one.namespace}/{one.hostname}" for one in asked if one is not None}
        if not services:
            return []
        return [
            name
            for name, one in self._addresses()
            if one.workload is not None and services & one.workload.services.keys()
        ]

    def _addresses(self) -> Iterator[tuple[str, Address]]:
        for name, stored in self._stored[ADDRESS_TYPE].items():
            yield name, Address.parse(stored.body)

    def _push(self, type_url: str, names: Sequence[str], removed: Sequence[str]) -> None:
        if self.misbehaviour.hang:
            return
        for stream in self._open_streams():
            if type_url not in stream.wildcard:
                continue
            wanted, gone = names, removed
            if not stream.wildcard[type_url]:
                wanted = [name for name in names if name in stream.subscribed[type_url]]
                gone = [name for name in removed if name in stream.subscribed[type_url]]
                if not wanted and not gone:
                    continue
            stream.outgoing.put(self._response(stream, type_url, wanted, gone))

    def _open_streams(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.is_open]

    def _response(self, stream: Stream, type_url: str, names: Sequence[str], removed: Sequence[str]) -> bytes:
        """Returns a response. As with istiod, resources have aliases only in on-demand mode."""
        stored = self._stored[type_url]
        with_aliases = not stream.wildcard[type_url]
        resources = [encode_resource(type_url, name, stored[name], with_aliases) for name in names]
        return self._head() + b"".join(resources) + self._tail(stream, type_url, removed)

    def _head(self) -> bytes:
        return wire_field(0x0A, f"push-{self._nonce + 1}".encode())  # the version of the whole

    def _tail(self, stream: Stream, type_url: str, removed: Sequence[str]) -> bytes:
        self._nonce += 1
        stream.sent[type_url] = str(self._nonce)
        gone = b"".join(wire_field(0x32, name.encode()) for name in removed)
        return wire_field(0x22, type_url.encode()) + wire_field(0x2A, str(self._nonce).encode()) + gone


def encode_resource(type_url: str, name: str, stored: _Stored, with_aliases: bool) -> bytes:
    """One resource of a response, in istiod's order of fields."""
    payload = wire_field(0x0A, type_url.encode()) + wire_field(0x12, stored.body)
    version = wire_field(0x0A, stored.version.encode()) if stored.version else b""
    shown = stored.aliases if with_aliases else ()
    aliases = b"".join(wire_field(0x22, alias.encode()) for alias in shown)
    return wire_field(0x12, version + wire_field(0x12, payload) + wire_field(0x1A, name.encode()) + aliases)


class _Handlers(grpc.GenericRpcHandler):
    """The two methods, on bytes."""

    def __init__(self, istiod: FakeIstiod) -> None:
        self._istiod = istiod

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        metadata = {str(key): str(value) for key, value in details.invocation_metadata}
        if (
            details.method
            == "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        ):
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._stream(metadata, requests, context)
            )
        if details.method == "/istio.v1.auth.IstioCertificateService/CreateCertificate":
            return grpc.unary_unary_rpc_method_handler(
                lambda message, context: self._istiod.certify(metadata, message, context)
            )
        return None

    def _stream(
        self, metadata: dict[str, str], requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        istiod = self._istiod
        istiod.check_token(metadata, context)
        stream = Stream(metadata)
        istiod.opened(stream)
        context.add_callback(lambda: stream.outgoing.put(_End(grpc.StatusCode.CANCELLED)))

        def listen() -> None:
            with contextlib.suppress(Exception):  # the call's end reaches the iterator as an RpcError
                for message in requests:
                    istiod.hear(stream, message)
            stream.outgoing.put(_End(grpc.StatusCode.OK))

        listener = threading.Thread(target=listen, name="fake istiod listens", daemon=True)
        listener.start()
        try:
            while True:
                message = stream.outgoing.get()
                if isinstance(message, _End):
                    if message.code is not grpc.StatusCode.OK:
                        context.abort(message.code, message.message)
                    return
                time.sleep(istiod.misbehaviour.delay)
                yield message
        finally:
            istiod.closed(stream)


@contextlib.contextmanager
def server_that_never_answers(
    speech: bytes = b"", port: int = 0, host: str = "127.0.0.1"
) -> Iterator[tuple[int, list[socket.socket]]]:
    """Runs a TCP server that accepts, sends ``speech``, and then nothing.

    Yields its port, and the list of the connections it has accepted.
    """
    with socket.create_server((host, port)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    accepted.append(connection)
                    connection.sendall(speech)

        thread = threading.Thread(target=accept, name="silent server", daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in accepted:
                connection.close()
