"""Who gets through a handshake, and what the others are told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from tests.support.tls_peers import (
    CA,
    CLIENT,
    CLIENT_CERTIFICATE,
    CLIENT_CONTEXT,
    DEADLINE,
    NOW,
    SERVER,
    SERVER_CERTIFICATE,
    SERVER_CONTEXT,
    Pair,
    certificate,
    sockets,
)
from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity
from ztunnel.tls import tls_errors as errors
from ztunnel.tls.context import TlsContext, TlsOptions, client_context, server_context
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tls.tls_errors import TlsAlertError, TlsContextError

OTHER_CA = IssuingCa(NOW, name="other")
DEFAULT = TlsOptions()
TLS12 = TlsOptions(tls12=True)
PQC = TlsOptions(post_quantum_only=True)


def client(certificate: Certificate, options: TlsOptions = DEFAULT) -> TlsContext:
    return client_context(certificate, options)


def server(certificate: Certificate, options: TlsOptions = DEFAULT) -> TlsContext:
    return server_context(certificate, options)


async def alert_at_client(pair: Pair) -> int:
    """The alert that a TLS 1.3 client gets after its own handshake has ended."""
    with trio.fail_after(DEADLINE):
        try:
            while pair.client.try_receive() is None:
                await pair.client.wait_receivable()
        except TlsAlertError as error:
            return error.alert
    raise AssertionError("there was no alert")


async def test_both_sides_learn_who_the_other_is():
    with Pair() as pair:
        assert await pair.handshake() == (None, None)
        assert pair.client.peer_identity == SERVER
        assert pair.server.peer_identity == CLIENT
        assert pair.server.peer_identities == (CLIENT,)
        assert pair.client.alpn == pair.server.alpn == "h2"
        assert pair.client.version == "TLSv1.3"
        assert pair.client.cipher == "TLS_AES_256_GCM_SHA384"
        assert pair.client.group == "x25519"
        assert [one.subject for one in pair.server.peer.chain[1:]] == [CA.subject]
        assert pair.client.peer_identity == SERVER


async def test_nothing_is_known_of_the_peer_before_the_handshake():
    with Pair() as pair:
        with pytest.raises(RuntimeError):
            _ = pair.client.peer
        with pytest.raises(RuntimeError):
            _ = pair.server.peer_identity


async def test_a_chain_through_an_intermediate_is_sent_and_accepted():
    intermediate = CA.intermediate(NOW)
    with Pair(client(certificate(CLIENT, intermediate)), server(certificate(SERVER, intermediate))) as pair:
        assert await pair.handshake() == (None, None)
        assert len(pair.server.peer.chain) == 3


async def test_an_intermediate_among_the_roots_is_a_trust_anchor():
    intermediate = IssuingCa(NOW, name="unseen root").intermediate(NOW)
    roots = (intermediate.pem,)
    with Pair(
        client(certificate(CLIENT, intermediate, roots=roots)),
        server(certificate(SERVER, intermediate, roots=roots)),
    ) as pair:
        assert await pair.handshake() == (None, None)


async def test_an_expired_trust_anchor_is_still_one():
    old = IssuingCa(NOW, lifetime=-60)
    with Pair(client(certificate(CLIENT, old)), server(certificate(SERVER, old))) as pair:
        assert await pair.handshake() == (None, None)


async def test_an_expired_intermediate_is_not_excused():
    late = IssuingCa(NOW, name="late", lifetime=-60, parent=CA)
    with Pair(client(certificate(CLIENT, late))) as pair:
        ours, theirs = await pair.handshake()
        assert ours is None
        assert isinstance(theirs, errors.ExpiredCertificateError)


async def test_old_and_new_roots_are_accepted_together():
    both = (CA.pem, OTHER_CA.pem)
    with Pair(
        client(certificate(CLIENT, CA, roots=both)), server(certificate(SERVER, OTHER_CA, roots=both))
    ) as pair:
        assert await pair.handshake() == (None, None)


async def test_several_roots_in_one_pem_count_each():
    both = (CA.pem + OTHER_CA.pem,)
    with Pair(
        client(certificate(CLIENT, CA, roots=both)), server(certificate(SERVER, OTHER_CA, roots=both))
    ) as pair:
        assert await pair.handshake() == (None, None)


@pytest.mark.parametrize("usages", [(), (ExtendedKeyUsageOID.CLIENT_AUTH,)])
async def test_extended_key_usage_counts_only_if_present(usages):
    with Pair(client(certificate(CLIENT, usages=usages))) as pair:
        assert await pair.handshake() == (None, None)


async def test_a_client_is_known_by_its_first_identity_whichever_matched():
    foreign = Identity("elsewhere", "default", "client")
    with Pair(client(certificate(CLIENT, uris=["https://x/", str(foreign), str(CLIENT)]))) as pair:
        assert await pair.handshake() == (None, None)
        assert pair.server.peer_identity == foreign
        assert pair.server.peer_identities == (foreign, CLIENT)
        assert pair.server.peer.skipped == ("https://x/",)


async def test_any_of_the_servers_identities_may_be_the_expected_one():
    other = Identity("elsewhere", "default", "server")
    context = server(certificate(SERVER, uris=[str(SERVER), str(other)]))
    with Pair(server=context, expected=["spiffe://no/ns/such/sa/one", str(other)]) as pair:
        assert await pair.handshake() == (None, None)
        assert pair.client.peer_identity == other


async def run_in_thread(function: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(function)


REFUSED_CLIENTS: dict[str, tuple[Callable[[], Certificate], type[errors.TlsHandshakeError], str, int]] = {
    "another CA": (
        lambda: certificate(CLIENT, OTHER_CA, roots=(CA.pem,)),
        errors.UnknownIssuerError,
        "InvalidCertificate(UnknownIssuer)",
        48,
    ),
    "another CA of the same name": (
        lambda: certificate(CLIENT, IssuingCa(NOW), roots=(CA.pem,)),
        errors.BadSignatureError,
        "InvalidCertificate(BadSignature)",
        51,
    ),
    "another trust domain": (
        lambda: certificate(Identity("other.td", "default", "client")),
        errors.TrustDomainError,
        (
            'InvalidCertificate(Other(OtherError(SanTrustDomainError("cluster.local", [Spiffe { '
            'trust_domain: "other.td", namespace: "default", service_account: "client" }]))))'
        ),
        46,
    ),
    "no URI SAN": (
        lambda: certificate(CLIENT, uris=()),
        errors.TrustDomainError,
        'InvalidCertificate(Other(OtherError(SanTrustDomainError("cluster.local", []))))',
        46,
    ),
    "a URI SAN that is no identity": (
        lambda: certificate(CLIENT, uris=["spiffe://cluster.local/ns/default/sa/client/"]),
        errors.TrustDomainError,
        'InvalidCertificate(Other(OtherError(SanTrustDomainError("cluster.local", []))))',
        46,
    ),
    "expired": (
        lambda: certificate(CLIENT, not_after=NOW - 5),
        errors.ExpiredCertificateError,
        "InvalidCertificate(Expired)",
        45,
    ),
    "not yet valid": (
        lambda: certificate(CLIENT, not_before=NOW + 86_400, not_after=NOW + 2 * 86_400),
        errors.NotYetValidCertificateError,
        "InvalidCertificate(NotValidYet)",
        45,
    ),
    "for servers only": (
        lambda: certificate(CLIENT, usages=[ExtendedKeyUsageOID.SERVER_AUTH]),
        errors.WrongPurposeError,
        "InvalidCertificate(InvalidPurpose)",
        43,
    ),
    "a CA's own": (
        lambda: certificate(CLIENT, is_authority=True, usages=()),
        errors.UnsuitableCertificateError,
        "InvalidCertificate(Other(OtherError(\"a CA's certificate is used as a workload's own\")))",
        46,
    ),
}


@pytest.mark.parametrize("case", REFUSED_CLIENTS)
async def test_a_server_refuses_a_client_and_says_why(case):
    make, kind, text, alert = REFUSED_CLIENTS[case]
    with Pair(client(make())) as pair:
        ours, theirs = await pair.handshake()
        assert ours is None
        assert theirs is not None
        assert type(theirs) is kind
        assert str(theirs) == f"tls handshake error: Custom {{ kind: InvalidData, error: {text} }}"
        assert len(theirs.explanation) > 20
        assert await alert_at_client(pair) == alert
        with pytest.raises(RuntimeError):
            _ = pair.server.peer


async def test_a_chain_without_end_is_refused():
    issuer = CA
    for number in range(8):
        issuer = issuer.intermediate(NOW, f"level {number}")
    with Pair(client(certificate(CLIENT, issuer))) as pair:
        _, theirs = await pair.handshake()
        assert isinstance(theirs, errors.PeerCertificateError)


REFUSED_SERVERS: dict[str, tuple[Callable[[], Certificate], type[errors.TlsHandshakeError], str, str]] = {
    "another CA": (
        lambda: certificate(SERVER, OTHER_CA, roots=(CA.pem,)),
        errors.UnknownIssuerError,
        "UnknownIssuer",
        "UnknownCA",
    ),
    "another identity": (
        lambda: certificate(Identity("cluster.local", "default", "else")),
        errors.PeerIdentityError,
        (
            "Other(OtherError(identity verification error: peer did not present the expected SAN "
            "(spiffe://cluster.local/ns/default/sa/server), got spiffe://cluster.local/ns/default/sa/else))"
        ),
        "CertificateUnknown",
    ),
    "no identity": (
        lambda: certificate(SERVER, uris=()),
        errors.PeerIdentityError,
        (
            "Other(OtherError(identity verification error: peer did not present the expected SAN "
            "(spiffe://cluster.local/ns/default/sa/server), got ))"
        ),
        "CertificateUnknown",
    ),
    "expired": (
        lambda: certificate(SERVER, not_after=NOW - 5),
        errors.ExpiredCertificateError,
        "Expired",
        "CertificateExpired",
    ),
    "for clients only": (
        lambda: certificate(SERVER, usages=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        errors.WrongPurposeError,
        "InvalidPurpose",
        "UnsupportedCertificate",
    ),
}


@pytest.mark.parametrize("case", REFUSED_SERVERS)
async def test_a_client_refuses_a_server_and_says_why(case):
    make, kind, text, alert = REFUSED_SERVERS[case]
    with Pair(server=server(make())) as pair:
        ours, theirs = await pair.handshake()
        assert type(ours) is kind
        assert str(ours) == f"io error: invalid peer certificate: {text}"
        assert isinstance(theirs, errors.AlertReceivedError)
        assert f"AlertReceived({alert})" in str(theirs)


async def test_an_empty_list_of_expected_identities_admits_nobody():
    with Pair(expected=[]) as pair:
        ours, _ = await pair.handshake()
        assert isinstance(ours, errors.PeerIdentityError)


async def test_the_trust_domain_rule_is_the_servers_alone():
    # The client takes whom it expects, in whatever trust domain.
    far = Identity("far.away", "default", "server")
    own = certificate(Identity("far.away", "default", "client"))
    with Pair(client(own), server(certificate(far)), [str(far)]) as pair:
        assert await pair.handshake() == (None, None)
    with Pair(CLIENT_CONTEXT, server(certificate(far)), [str(far)]) as pair:
        ours, theirs = await pair.handshake()
        assert ours is None
        assert isinstance(theirs, errors.TrustDomainError)


def bare_client(*, with_certificate: bool = True, alpn: list[bytes] | None = None) -> SSL.Context:
    """A client that is not ours and checks nothing."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if with_certificate:
        context.use_certificate(pem_certificate(CLIENT_CERTIFICATE))
        context.use_privatekey(pem_key(CLIENT_CERTIFICATE))
    if alpn is not None:
        context.set_alpn_protos(alpn)
    return context


def pem_certificate(certificate: Certificate):
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate(certificate.chain[0])


def pem_key(certificate: Certificate):
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(certificate.private_key, None)


async def meet(
    context: SSL.Context, against: TlsContext = SERVER_CONTEXT
) -> tuple[Exception | None, str, SocketTls]:
    """Let a bare client meet our server: the server's failure, what the client read in the end, the
    server.
    """
    ours, theirs = sockets()
    ours.setblocking(True)
    ours.settimeout(DEADLINE)
    tls = SocketTls(against, theirs)
    failure: Exception | None = None
    told = ""

    def talk() -> None:
        nonlocal told
        connection = SSL.Connection(context, ours)
        connection.set_connect_state()
        ours.setblocking(True)
        try:
            connection.do_handshake()
            connection.recv(1)
            told = "data"
        except SSL.ZeroReturnError:
            told = "end"
        except SSL.Error as error:
            told = str(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_thread, talk)
        try:
            await tls.handshake(DEADLINE)
            tls.close_notify()
        except errors.TlsHandshakeError as error:
            failure = error
        tls.close()
    ours.close()
    return failure, told, tls


async def test_a_client_without_a_certificate_is_refused():
    failure, told, _ = await meet(bare_client(with_certificate=False))
    assert isinstance(failure, errors.NoCertificateError)
    assert "NoCertificatesPresented" in str(failure)
    assert "certificate required" in told


async def test_a_client_that_offers_other_protocols_only_is_refused():
    failure, told, _ = await meet(bare_client(alpn=[b"http/1.1", b"h3"]))
    assert isinstance(failure, errors.NoApplicationProtocolError)
    assert "no application protocol" in told


async def test_h2_among_others_is_chosen():
    failure, told, _ = await meet(bare_client(alpn=[b"http/1.1", b"h2"]))
    assert (failure, told) == (None, "end")


async def test_a_client_that_offers_no_protocol_is_accepted():
    failure, told, tls = await meet(bare_client())
    assert (failure, told) == (None, "end")
    assert tls.alpn is None


async def test_tls_1_2_is_refused():
    context = bare_client()
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    failure, told, _ = await meet(context)
    assert isinstance(failure, errors.IncompatiblePeerError)
    assert "protocol version" in told


async def test_tls_1_2_is_accepted_when_it_is_enabled():
    context = bare_client()
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    failure, told, tls = await meet(context, server(SERVER_CERTIFICATE, TLS12))
    assert (failure, told) == (None, "end")
    assert tls.version == "TLSv1.2"
    assert tls.cipher == "ECDHE-ECDSA-AES256-GCM-SHA384"


async def test_tls_1_3_is_chosen_when_both_are_there():
    with Pair(client(CLIENT_CERTIFICATE, TLS12), server(SERVER_CERTIFICATE, TLS12)) as pair:
        assert await pair.handshake() == (None, None)
        assert pair.client.version == "TLSv1.3"


async def test_chacha20_is_not_offered_and_not_taken():
    context = bare_client()
    context.set_tls13_ciphersuites(b"TLS_CHACHA20_POLY1305_SHA256")
    failure, _, _ = await meet(context)
    assert isinstance(failure, errors.IncompatiblePeerError)


async def test_the_smaller_aes_is_taken_from_who_has_nothing_else():
    context = bare_client()
    context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
    failure, _, tls = await meet(context)
    assert failure is None
    assert tls.cipher == "TLS_AES_128_GCM_SHA256"


async def test_post_quantum_only_takes_nothing_else():
    with Pair(client(CLIENT_CERTIFICATE, PQC), server(SERVER_CERTIFICATE, PQC)) as pair:
        assert await pair.handshake() == (None, None)
        assert pair.client.group == "X25519MLKEM768"
    # Whoever has the default groups can still come, by a second hello.
    with Pair(server=server(SERVER_CERTIFICATE, PQC)) as pair:
        assert await pair.handshake() == (None, None)
        assert pair.client.group == "X25519MLKEM768"
    context = bare_client()
    from ztunnel.tls import openssl as tls_openssl

    assert tls_openssl.set_groups(context, b"P-256")
    failure, _, _ = await meet(context, server(SERVER_CERTIFICATE, PQC))
    assert isinstance(failure, errors.IncompatiblePeerError)


async def test_no_session_is_resumed():
    context = bare_client()
    context.set_session_cache_mode(SSL.SESS_CACHE_CLIENT)
    session = None
    reused = []
    for _ in range(3):
        ours, theirs = sockets()
        tls = SocketTls(SERVER_CONTEXT, theirs)
        connection = SSL.Connection(context, ours)
        connection.set_connect_state()
        if session is not None:
            connection.set_session(session)

        def talk(connection=connection) -> None:
            connection.do_handshake()
            # Tickets come behind the handshake: read until the end.
            with pytest.raises(SSL.ZeroReturnError):
                connection.recv(1)

        async with trio.open_nursery() as nursery:
            ours.setblocking(True)
            nursery.start_soon(run_in_thread, talk)
            await tls.handshake(DEADLINE)
            tls.close_notify()
        from ztunnel.tls.openssl import lib, ssl_of

        reused.append(lib.SSL_session_reused(ssl_of(connection)))
        session = connection.get_session()
        tls.close()
        ours.close()
    assert reused == [0, 0, 0]


async def test_the_client_sends_no_server_name():
    ours, theirs = sockets()
    with trio.fail_after(DEADLINE):
        tls = SocketTls(CLIENT_CONTEXT, ours, [str(SERVER)])
        with trio.move_on_after(0.1):
            await tls.handshake(DEADLINE)
        hello = theirs.recv(65536)
    # The extension's type (0) and its place are at fixed offsets after the variable parts; walk to them.
    body = hello[5 + 4 + 2 + 32 :]
    body = body[1 + body[0] :]
    body = body[2 + int.from_bytes(body[:2], "big") :]
    body = body[1 + body[0] :][2:]
    kinds = []
    while body:
        kinds.append(int.from_bytes(body[:2], "big"))
        body = body[4 + int.from_bytes(body[2:4], "big") :]
    assert 16 in kinds  # ALPN: the walk is right
    assert 0 not in kinds  # server_name
    assert 35 not in kinds  # session_ticket
    assert 42 not in kinds  # early_data
    tls.close()
    theirs.close()


@pytest.mark.parametrize(
    "nonsense", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 40]
)
async def test_plaintext_at_the_server_is_named(nonsense):
    ours, theirs = sockets()
    ours.send(nonsense)
    tls = SocketTls(SERVER_CONTEXT, theirs)
    with pytest.raises(errors.NotTlsError) as caught:
        await tls.handshake(DEADLINE)
    assert str(caught.value) == (
        "tls handshake error: Custom { kind: InvalidData, error: InvalidMessage(InvalidContentType) }"
    )
    tls.close()
    ours.close()


async def test_plaintext_at_the_client_is_named():
    ours, theirs = sockets()
    theirs.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    tls = SocketTls(CLIENT_CONTEXT, ours, [str(SERVER)])
    with pytest.raises(errors.NotTlsError, match="io error: received corrupt message"):
        await tls.handshake(DEADLINE)
    tls.close()
    theirs.close()


async def test_an_end_in_the_middle_is_named():
    ours, theirs = sockets()
    ours.close()
    tls = SocketTls(SERVER_CONTEXT, theirs)
    with pytest.raises(errors.HandshakeEofError) as caught:
        await tls.handshake(DEADLINE)
    assert str(caught.value) == (
        'tls handshake error: Custom { kind: UnexpectedEof, error: "tls handshake eof" }'
    )
    tls.close()


async def test_a_silent_peer_is_given_up(autojump_clock):
    ours, theirs = sockets()
    tls = SocketTls(SERVER_CONTEXT, theirs)
    # autojump does not count sockets as activity, so the deadline passes at once.
    with pytest.raises(errors.HandshakeTimeoutError):
        await tls.handshake(30)
    assert trio.current_time() >= 30
    tls.close()
    ours.close()


async def test_handshakes_that_wait_for_their_turns_are_not_mixed_up():
    """They all read through one buffer."""
    names = [Identity("cluster.local", "default", f"client-{number}") for number in range(10)]
    pairs = [Pair(client(certificate(name))) for name in names]

    async def turn() -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            for pair in pairs:
                nursery.start_soon(partial(pair.client.handshake, DEADLINE, turn=turn))
                nursery.start_soon(partial(pair.server.handshake, DEADLINE, turn=turn))
    assert [pair.server.peer_identity for pair in pairs] == names
    for pair in pairs:
        pair.client.close()
        pair.server.close()


async def test_a_handshake_waits_for_no_turn_before_there_is_a_byte():
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        await trio.lowlevel.checkpoint()

    with Pair() as pair, trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(pair.server.handshake, DEADLINE, turn=turn))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert turns == 0
            nursery.start_soon(pair.client.handshake, DEADLINE)
        assert turns >= 2


async def test_a_cancelled_handshake_leaves_nothing_behind():
    for side in ("client", "server"):
        ours, theirs = sockets()
        tls = (
            SocketTls(CLIENT_CONTEXT, ours, [str(SERVER)])
            if side == "client"
            else SocketTls(SERVER_CONTEXT, theirs)
        )
        with trio.move_on_after(0.05) as scope:
            await tls.handshake(DEADLINE)
        assert scope.cancelled_caught
        tls.close()
        assert not CLIENT_CONTEXT._running
        assert not SERVER_CONTEXT._running
        ours.close()
        theirs.close()


async def test_a_client_must_say_whom_it_expects():
    ours, theirs = sockets()
    with pytest.raises(ValueError, match="expects"):
        SocketTls(CLIENT_CONTEXT, ours)
    with pytest.raises(ValueError, match="expects"):
        SocketTls(SERVER_CONTEXT, theirs, [str(CLIENT)])
    ours.close()
    theirs.close()


def broken(**changes: object) -> Certificate:
    good = CLIENT_CERTIFICATE
    values = {name: getattr(good, name) for name in good.__slots__}
    return Certificate(**(values | changes))


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (broken(private_key=b"nonsense"), "private key"),
        (broken(private_key=SERVER_CERTIFICATE.private_key), "do not belong together"),
        (broken(chain=(b"nonsense",)), "cannot be read"),
        (broken(roots=()), "no root certificate"),
        (broken(chain=()), "cannot be read"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named_before_any_connection(bad, text):
    with pytest.raises(TlsContextError, match=text) as caught:
        client(bad)
    assert "BEGIN" not in str(caught.value)
