from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from ipaddress import ip_address
from random import Random

import pytest
import trio

from tests.support.logs import capture_logs
from tests.support.namespaces import open_descriptors
from ztunnel.errors import os_error_text
from ztunnel.model.address import SocketAddress
from ztunnel.netns.namespace import own_ipv6_enabled_on_loopback
from ztunnel.sockets.addresses import DestinationOrigin, from_sockaddr, local_address, original_destination
from ztunnel.sockets.descriptor_limit import DescriptorBudget
from ztunnel.sockets.dial import ConnectTimedOut, connect
from ztunnel.sockets.factories import HostSockets
from ztunnel.sockets.keepalive import Keepalive
from ztunnel.sockets.listen import BindError, bind_datagram, listen
from ztunnel.sockets.reset import close_with_reset, set_reset_on_close
from ztunnel.sockets.source import ClientSources

LOOPBACK = ip_address("127.0.0.1")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for SO_MARK and IP_TRANSPARENT")
needs_ipv6 = pytest.mark.skipif(not own_ipv6_enabled_on_loopback(), reason="needs IPv6 on the loopback")


def address(text: str) -> SocketAddress:
    return SocketAddress.parse(text)


class Factory(HostSockets):
    """Makes sockets that refuse some families, and counts."""

    def __init__(self, *refused: int) -> None:
        super().__init__()
        self.refused = refused

    async def stream(self, family: int) -> socket.socket:
        if family in self.refused:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return await super().stream(family)


@pytest.mark.parametrize("text", ["127.0.0.1:0", pytest.param("[::1]:0", marks=needs_ipv6)])
async def test_dial_and_listen_know_each_other_by_canonical_addresses(text):
    listener = await listen(address(text), factory=HostSockets())
    with listener.sock:
        assert listener.address.port
        with await connect(listener.address, factory=HostSockets()) as near:
            assert near.gettimeout() == 0
            assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert from_sockaddr(near.getpeername()) == listener.address
            await trio.lowlevel.wait_readable(listener.sock)
            with listener.sock.accept()[0] as far:
                assert from_sockaddr(far.getpeername()) == local_address(near)
                assert local_address(far) == listener.address


@needs_ipv6
async def test_the_wildcard_accepts_both_families_and_shows_ipv4_as_ipv4():
    listener = await listen(address("[::]:0"), factory=HostSockets())
    with listener.sock:
        for text in ("127.0.0.1", "::1"):
            target = SocketAddress(ip_address(text), listener.address.port)
            with await connect(target, factory=HostSockets()):
                await trio.lowlevel.wait_readable(listener.sock)
                with listener.sock.accept()[0] as far:
                    assert from_sockaddr(far.getpeername()).ip == ip_address(text)
                    assert local_address(far) == target


async def test_without_ipv6_in_the_kernel_the_wildcard_is_that_of_ipv4():
    listener = await listen(address("[::]:0"), factory=Factory(socket.AF_INET6))
    with listener.sock:
        assert str(listener.address).startswith("0.0.0.0:")
        assert listener.sock.family == socket.AF_INET


async def test_without_ipv6_in_the_kernel_another_ipv6_address_fails_to_bind():
    with pytest.raises(BindError) as caught:
        await listen(address("[::1]:15053"), factory=Factory(socket.AF_INET6))
    assert caught.value.errno == errno.EAFNOSUPPORT


async def test_a_taken_port_is_a_bind_error_with_the_known_text_and_leaves_nothing_open():
    with (await listen(address("127.0.0.1:0"), factory=HostSockets())).sock as first:
        taken = local_address(first)
        before = open_descriptors()
        with pytest.raises(BindError) as caught:
            await listen(taken, factory=HostSockets())
        assert str(caught.value) == f"failed to bind to address {taken}: Address already in use (os error 98)"
        assert caught.value.address == taken
        assert caught.value.brief == f"Bind({taken}, Address already in use (os error 98))"
        assert caught.value.text == "Address already in use (os error 98)"
        assert open_descriptors() == before


async def test_with_port_reuse_two_may_listen():
    with (
        (await listen(address("127.0.0.1:0"), factory=HostSockets(), reuse_port=True)).sock as first,
        (await listen(local_address(first), factory=HostSockets(), reuse_port=True)).sock as second,
    ):
        assert local_address(first) == local_address(second)


@needs_root
async def test_datagram_sockets_are_bound_marked_and_shared_as_wanted():
    address_ = address("127.0.0.1:0")
    with await bind_datagram(address_, factory=HostSockets(), mark=1337, reuse_port=True) as first:
        taken = local_address(first)
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 1337
        (await bind_datagram(taken, factory=HostSockets(), reuse_port=True)).close()
        before = open_descriptors()
        with pytest.raises(BindError) as caught:
            await bind_datagram(taken, factory=HostSockets())
        assert caught.value.brief == f"Bind({taken}, Address already in use (os error 98))"
        assert open_descriptors() == before


@needs_root
@pytest.mark.parametrize(("wanted", "result"), [(True, True), (None, True), (False, False)])
async def test_a_listener_is_transparent_as_wanted(wanted, result):
    listener = await listen(address("127.0.0.1:0"), factory=HostSockets(), transparent=wanted)
    with listener.sock:
        assert listener.transparent is result
        assert listener.sock.getsockopt(socket.IPPROTO_IP, 19) == int(result)


class Forbidding(socket.socket):
    """A socket on which one option may not be set."""

    forbidden: tuple[int, int] = (socket.IPPROTO_IP, 19)

    def setsockopt(self, level, option, *value):
        if (level, option) == self.forbidden:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        super().setsockopt(level, option, *value)


class ForbiddingFactory(HostSockets):
    async def conntrack(self) -> socket.socket:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    async def stream(self, family: int) -> socket.socket:
        return Forbidding(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


async def test_transparency_that_is_required_but_forbidden_fails_the_listener():
    with pytest.raises(BindError) as caught:
        await listen(address("127.0.0.1:0"), factory=ForbiddingFactory(), transparent=True)
    assert caught.value.errno == errno.EPERM


async def test_transparency_that_is_tried_but_forbidden_is_remembered_as_absent():
    listener = await listen(address("127.0.0.1:0"), factory=ForbiddingFactory(), transparent=None)
    with listener.sock:
        assert not listener.transparent


async def test_port_reuse_that_is_forbidden_only_warns(monkeypatch):
    monkeypatch.setattr(Forbidding, "forbidden", (socket.SOL_SOCKET, socket.SO_REUSEPORT))
    with capture_logs() as records:
        (await listen(address("127.0.0.1:0"), factory=ForbiddingFactory(), reuse_port=True)).close()
    assert [record.message for record in records] == [
        "failed to set SO_REUSEPORT: Operation not permitted (os error 1)"
    ]


async def test_nobody_there_is_a_refusal():
    with (await listen(address("127.0.0.1:0"), factory=HostSockets())).sock as gone:
        target = local_address(gone)
    before = open_descriptors()
    with pytest.raises(ConnectionRefusedError) as caught:
        await connect(target, factory=HostSockets())
    assert os_error_text(caught.value) == "Connection refused (os error 111)"
    assert open_descriptors() == before


async def test_a_dial_without_an_answer_ends_at_the_deadline(autojump_clock):
    """A listener with a full backlog drops SYNs."""
    start = 0.0
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        target = SocketAddress(LOOPBACK, full.getsockname()[1])
        filling = []
        try:

            async def dial_until_it_hangs() -> None:
                nonlocal start
                for _ in range(10):
                    start = trio.current_time()
                    filling.append(await connect(target, factory=HostSockets()))

            with pytest.raises(ConnectTimedOut) as caught:
                await dial_until_it_hangs()
            assert str(caught.value) == "deadline has elapsed"
            assert isinstance(caught.value, TimeoutError)
            assert trio.current_time() - start == pytest.approx(10.0)
        finally:
            for sock in filling:
                sock.close()


class LateToTell(socket.socket):
    """The kernel has connected it, and says so later."""

    def connect_ex(self, target: object) -> int:
        super().connect_ex(target)  # type: ignore[arg-type]  # the library's own types say less
        return errno.EINPROGRESS


class LateFactory(HostSockets):
    async def stream(self, family: int) -> socket.socket:
        sock = LateToTell(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock


async def test_a_dial_that_is_given_up_ends_with_a_reset_though_it_was_established():
    """An application sees no empty connection that ends in order, as if a client had wanted that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = address(f"127.0.0.1:{listener.getsockname()[1]}")
        with trio.CancelScope() as scope:
            scope.cancel()
            await connect(target, factory=LateFactory())
        assert scope.cancelled_caught
        listener.settimeout(30)
        far, _ = listener.accept()
        with far, pytest.raises(ConnectionResetError):
            far.recv(1)


async def test_a_factory_that_hangs_falls_under_the_deadline(autojump_clock):
    class Hanging(HostSockets):
        def ready(self, family: int) -> bool:
            del family
            return False

        async def stream(self, family: int) -> socket.socket:
            del family
            await trio.sleep_forever()
            raise AssertionError

    with pytest.raises(ConnectTimedOut):
        await connect(address("127.0.0.1:1"), factory=Hanging())


@needs_root
async def test_mark_and_keepalive_are_on_a_dialled_socket():
    with (
        (await listen(address("127.0.0.1:0"), factory=HostSockets())).sock as listener,
        await connect(
            local_address(listener), factory=HostSockets(), mark=1337, keepalive=Keepalive(time=77)
        ) as sock,
    ):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 1337
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77


async def test_a_mark_that_cannot_be_set_fails_the_dial(monkeypatch):
    monkeypatch.setattr(Forbidding, "forbidden", (socket.SOL_SOCKET, socket.SO_MARK))
    listener = await listen(address("127.0.0.1:0"), factory=HostSockets())
    with listener.sock, pytest.raises(PermissionError):
        await connect(listener.address, factory=ForbiddingFactory(), mark=1337)


@needs_root
async def test_a_dial_comes_from_the_address_it_is_told():
    with (await listen(address("127.0.0.1:0"), factory=HostSockets())).sock as listener:
        client = ip_address("127.0.0.77")
        sources = ClientSources(HostSockets(), Random(1))
        target = local_address(listener)
        with (
            closing(sources),
            await connect(target, factory=HostSockets(), client=client, sources=sources),
        ):
            await trio.lowlevel.wait_readable(listener)
            far, (seen, _) = listener.accept()
            far.close()
            assert seen == str(client)


async def test_the_destinations_own_address_is_not_bound():
    with (await listen(address("127.0.0.1:0"), factory=HostSockets())).sock as listener:
        target = local_address(listener)
        with (
            capture_logs() as records,
            await connect(
                target,
                factory=ForbiddingFactory(),
                client=target.ip,
                sources=ClientSources(ForbiddingFactory(), Random(1)),
            ) as sock,
        ):
            assert local_address(sock).ip == LOOPBACK
        assert records == []


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        ("192.0.2.1", "failed to set freebind: Operation not permitted (os error 1)"),
        (
            "2001:db8::1",
            "failed to bind local addr: 2001:db8::1 and 127.0.0.1 are of different address families",
        ),
    ],
)
async def test_a_source_that_cannot_be_taken_is_a_warning_and_the_dial_goes_on(source, warning):
    with (await listen(address("127.0.0.1:0"), factory=HostSockets())).sock as listener:
        sources = ClientSources(ForbiddingFactory(), Random(1))
        with (
            capture_logs() as records,
            closing(sources),
            await connect(
                local_address(listener),
                factory=ForbiddingFactory(),
                client=ip_address(source),
                sources=sources,
            ) as sock,
        ):
            assert local_address(sock).ip == LOOPBACK
        assert [record.message for record in records if "code" not in record.fields] == [warning]


async def test_over_the_budget_nothing_is_dialled():
    before = open_descriptors()
    with pytest.raises(OSError, match="Too many open files") as caught:
        await connect(address("127.0.0.1:1"), factory=HostSockets(DescriptorBudget(limit=16, reserve=16)))
    assert caught.value.errno == errno.EMFILE
    assert open_descriptors() == before


async def test_without_a_redirection_the_original_destination_is_the_local_address():
    listener = await listen(address("127.0.0.1:0"), factory=HostSockets())
    with listener.sock, await connect(listener.address, factory=HostSockets()):
        await trio.lowlevel.wait_readable(listener.sock)
        with listener.sock.accept()[0] as far:
            found = original_destination(far)
    assert found.address == SocketAddress(LOOPBACK, found.address.port)
    if found.origin is DestinationOrigin.LOCAL_ADDRESS:
        assert found.errors is not None
        assert all(error.errno for error in found.errors)
    else:  # connection tracking runs on this machine
        assert found.errors is None


async def test_a_closed_socket_has_no_original_destination():
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        original_destination(sock)


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_reset_throws_away_what_was_queued(at_once):
    with (await listen(address("127.0.0.1:0"), factory=HostSockets())).sock as listener:
        sock = await connect(local_address(listener), factory=HostSockets())
        await trio.lowlevel.wait_readable(listener)
        with listener.accept()[0] as far:
            if at_once:
                close_with_reset(sock)
            else:
                set_reset_on_close(sock)
                sock.close()
            with pytest.raises(ConnectionResetError):
                far.recv(1)
    close_with_reset(sock)
    set_reset_on_close(sock)


def test_an_error_without_a_number_is_told_in_its_own_words():
    assert os_error_text(OSError("AF_UNIX path too long")) == "AF_UNIX path too long"
