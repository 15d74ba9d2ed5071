"""Sockets in real namespaces, and what may go wrong on the way there and back."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.namespaces import (
    made_socket,
    namespace_of,
    needs_namespaces,
    open_descriptors,
    own_namespace,
)
from ztunnel.demo.machine import Machine
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.network import Network, Pod, set_kernel_setting
from ztunnel.netns import namespace_thread
from ztunnel.netns.namespace import Namespace, ipv6_enabled_on_loopback
from ztunnel.netns.namespace_thread import (
    NamespaceError,
    NamespaceIdentity,
    NamespaceThread,
    NamespaceThreadError,
    Visit,
)
from ztunnel.sockets.descriptor_limit import DescriptorBudget
from ztunnel.sockets.factories import NamespaceSockets, SpareSockets

pytestmark = needs_namespaces


@pytest.fixture(scope="module")
def made() -> Iterator[list[OwnedNamespace]]:
    with Machine.open() as machine:
        yield [machine.namespace("one"), machine.namespace("two")]


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with Machine.open() as machine:
        yield Network(machine).node("a").pod("p")


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No descriptor, no thread, and this thread where it was."""
    gc.collect()
    descriptors, home = open_descriptors(), own_namespace()
    yield
    assert own_namespace() == home
    assert open_descriptors() == descriptors
    for thread in helper_threads():
        thread.join(5)  # one that was ended may still be on its way out
    assert helper_threads() == []


def namespace_of_thread(thread: threading.Thread) -> int:
    return Path(f"/proc/self/task/{thread.native_id}/ns/net").stat().st_ino


def helper_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "network namespaces"]


async def test_sockets_belong_to_the_namespace_and_this_thread_stays_where_it_is(made):
    home = own_namespace()
    with NamespaceThread() as thread:
        for one in made:
            with Namespace.duplicate(one.descriptor, thread) as namespace:
                for family in (socket.AF_INET, socket.AF_INET6):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        for sock in await namespace.sockets(family, kind, 2):
                            with sock:
                                assert namespace_of(sock) == one.inode
                                assert sock.gettimeout() == 0
                                assert not sock.get_inheritable()
                                assert (sock.family, sock.type) == (family, kind)
                assert own_namespace() == home
        assert thread.home.inode == home


async def test_between_visits_the_helper_thread_is_at_home(made):
    with NamespaceThread() as thread, Namespace.duplicate(made[0].descriptor, thread) as namespace:
        inside = await namespace.run(own_namespace)
        assert inside == made[0].inode
        (helper,) = helper_threads()
        assert namespace_of_thread(helper) == own_namespace()


async def test_what_is_no_namespace_fails_and_harms_nobody(made):
    with (
        NamespaceThread() as thread,
        Path("/dev/null").open() as null,
        Namespace.duplicate(null.fileno(), thread) as bad,
        Namespace.duplicate(made[0].descriptor, thread) as good,
    ):
        with pytest.raises(NamespaceError) as caught:
            await bad.sockets(socket.AF_INET, socket.SOCK_STREAM)
        assert caught.value.errno == errno.EINVAL
        assert str(caught.value) == "[Errno 22] failed to enter network namespace: Invalid argument"
        (sock,) = await good.sockets(socket.AF_INET, socket.SOCK_STREAM)
        sock.close()


async def test_an_error_inside_comes_back_and_the_thread_goes_home(made):
    def fail() -> None:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    with NamespaceThread() as thread, Namespace.duplicate(made[0].descriptor, thread) as namespace:
        for _ in range(3):
            with pytest.raises(OSError, match="no such family"):
                await namespace.run(fail)
        with pytest.raises(OSError, match="Address family not supported"):
            await namespace.sockets(255, socket.SOCK_STREAM)
        assert len(helper_threads()) == 1


async def test_a_thread_that_cannot_come_home_is_ended_and_the_next_visit_has_a_fresh_one(made, monkeypatch):
    real = namespace_thread.set_namespace
    home = own_namespace()
    stranded: list[int | None] = []

    def strand(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == home and not stranded:
            stranded.append(threading.get_native_id())
            raise OSError(errno.EPERM, "no way home")
        real(descriptor)

    monkeypatch.setattr(namespace_thread, "set_namespace", strand)
    with NamespaceThread() as thread, Namespace.duplicate(made[0].descriptor, thread) as namespace:
        (sock,) = await namespace.sockets(socket.AF_INET, socket.SOCK_STREAM)
        with sock:
            assert namespace_of(sock) == made[0].inode
        (sock,) = await namespace.sockets(socket.AF_INET, socket.SOCK_STREAM)
        with sock:
            assert namespace_of(sock) == made[0].inode
        (helper,) = helper_threads()
        assert helper.native_id != stranded[0]
        assert namespace_of_thread(helper) == home


async def test_visits_that_wait_behind_a_stranded_thread_fail_and_none_hangs(made, monkeypatch):
    real = namespace_thread.set_namespace
    home = own_namespace()
    reached, go_on = threading.Event(), threading.Event()

    def strand(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == home and not reached.is_set():
            reached.set()
            go_on.wait(5)
            raise OSError(errno.EPERM, "no way home")
        real(descriptor)

    monkeypatch.setattr(namespace_thread, "set_namespace", strand)
    outcomes: list[str] = []
    with NamespaceThread() as thread, Namespace.duplicate(made[0].descriptor, thread) as namespace:

        async def visit() -> None:
            try:
                for sock in await namespace.sockets(socket.AF_INET, socket.SOCK_STREAM):
                    sock.close()
                outcomes.append("made")
            except NamespaceThreadError:
                outcomes.append("ended")

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(visit)
            await trio.to_thread.run_sync(reached.wait)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
    assert sorted(outcomes) == ["ended"] * 4 + ["made"]


async def test_a_thread_that_does_not_begin_at_home_refuses_to_work(made):
    with NamespaceThread() as thread, Namespace.duplicate(made[0].descriptor, thread) as namespace:
        thread._home_identity = NamespaceIdentity(1, 1)
        with pytest.raises(NamespaceThreadError):
            await namespace.sockets(socket.AF_INET, socket.SOCK_STREAM)


async def test_a_cancelled_wait_closes_what_was_made_for_it(made):
    with NamespaceThread() as thread, Namespace.duplicate(made[0].descriptor, thread) as namespace:
        blocker = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(namespace.run, blocker.wait)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.01) as scope:
                await namespace.sockets(socket.AF_INET, socket.SOCK_STREAM, 3)
            assert scope.cancelled_caught
            before = open_descriptors()
            blocker.set()
        await namespace.run(own_namespace)  # the queue is empty after this one
        assert open_descriptors() == before


async def test_closing_during_a_visit_lets_it_finish_in_the_right_namespace(made):
    descriptor = os.dup(made[0].descriptor)
    with NamespaceThread() as thread:
        namespace = Namespace(descriptor, thread)
        blocker = threading.Event()
        results: list[int] = []

        async def visit() -> None:
            results.append(await namespace.run(own_namespace))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(namespace.run, blocker.wait)
            nursery.start_soon(visit)
            await trio.testing.wait_all_tasks_blocked()
            namespace.close()
            os.fstat(descriptor)  # still open
            blocker.set()
        assert results == [made[0].inode]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        with pytest.raises(NamespaceError) as caught:
            await namespace.run(own_namespace)
        assert caught.value.errno == errno.EBADF
        namespace.close()


async def test_a_closed_thread_takes_no_visits(made):
    thread = NamespaceThread()
    with Namespace.duplicate(made[0].descriptor, thread) as namespace:
        await namespace.run(own_namespace)
        thread.close()
        thread.close()
        with pytest.raises(NamespaceThreadError):
            await namespace.run(own_namespace)


async def test_namespaces_without_a_thread_of_their_own_share_one_while_any_is_open(made):
    assert helper_threads() == []
    first, second = Namespace.duplicate(made[0].descriptor), Namespace.duplicate(made[1].descriptor)
    assert await first.run(own_namespace) == made[0].inode
    assert await second.run(own_namespace) == made[1].inode
    assert len(helper_threads()) == 1
    first.close()
    assert await second.run(own_namespace) == made[1].inode
    second.close()
    assert helper_threads() == []


def test_what_trio_no_longer_waits_for_is_closed(made):
    """The loop ends while a visit is under way."""
    blocker = threading.Event()
    late: list[bool] = []
    namespaces: list[Namespace] = []

    async def leave() -> None:
        namespace = Namespace.duplicate(made[0].descriptor, thread)
        namespaces.append(namespace)
        namespace.visit(lambda: blocker.wait(5), lambda _: pytest.fail("trio has ended"), late.append)

    with NamespaceThread() as thread:
        trio.run(leave)
        blocker.set()
    assert late == [True]
    namespaces[0].close()


async def test_ipv6_is_judged_for_each_namespace(pod, made):
    async def judged(one: OwnedNamespace) -> bool:
        with Namespace.duplicate(one.descriptor) as namespace:
            return await ipv6_enabled_on_loopback(namespace)

    assert not await judged(made[0]), "its loopback is down"
    assert await judged(pod.namespace)
    set_kernel_setting(pod.namespace, "net/ipv6/conf/lo/disable_ipv6", "1")
    try:
        assert not await judged(pod.namespace)
    finally:
        set_kernel_setting(pod.namespace, "net/ipv6/conf/lo/disable_ipv6", "0")


class CountingThread(NamespaceThread):
    """A helper thread that counts its visits."""

    visits = 0

    def submit(self, visit: Visit[Any]) -> None:
        self.visits += 1
        super().submit(visit)


async def test_a_visit_brings_sockets_for_several_dials(made):
    spares = SpareSockets()
    with CountingThread() as thread, Namespace.duplicate(made[0].descriptor, thread) as namespace:
        factory = NamespaceSockets(namespace, spares=spares)
        assert spares.kept == 0, "none for a pod that never dials"
        for _ in range(80):
            with await factory.stream(socket.AF_INET) as sock:
                assert namespace_of(sock) == made[0].inode
                assert sock.gettimeout() == 0
            # An order is a visit, so one that waits behind it lets it arrive.
            await namespace.run(own_namespace)
            assert 4 <= spares.kept <= 12
        ours = thread.visits - 80
        assert 10 <= ours <= 12, "one visit for the first dial, then one for each eight"
        with await factory.stream(socket.AF_INET6) as sock:
            assert sock.family == socket.AF_INET6
        with await factory.datagram(socket.AF_INET) as sock:
            assert sock.type == socket.SOCK_DGRAM
        await namespace.run(own_namespace)
        factory.close()
        assert spares.kept == 0
        with pytest.raises(OSError, match="Bad file descriptor"):
            await factory.stream(socket.AF_INET)


async def test_the_stock_is_used_without_a_visit(made):
    with Namespace.duplicate(made[0].descriptor) as namespace:
        factory = NamespaceSockets(namespace, spares=SpareSockets())
        (await factory.stream(socket.AF_INET)).close()
        await namespace.run(own_namespace)
        # A cancelled scope would interrupt a visit.
        with trio.CancelScope() as scope:
            scope.cancel()
            (await factory.stream(socket.AF_INET)).close()
        assert not scope.cancelled_caught
        await namespace.run(own_namespace)
        factory.close()


async def test_the_shelf_is_bounded_and_the_idlest_pod_gives_way(made):
    spares = SpareSockets(size=10)
    with Namespace.duplicate(made[0].descriptor) as first, Namespace.duplicate(made[1].descriptor) as second:
        idle, busy = NamespaceSockets(first, spares=spares), NamespaceSockets(second, spares=spares)
        for factory, namespace in ((idle, first), (busy, second)):
            for _ in range(12):
                with await factory.stream(socket.AF_INET) as sock:
                    assert namespace_of(sock) == namespace.identity.inode
                await namespace.run(own_namespace)
                assert spares.kept <= 10
        idle.close()
        busy.close()
        assert spares.kept == 0


async def test_an_order_that_arrives_after_the_pod_has_gone_is_closed(made):
    with Namespace.duplicate(made[0].descriptor) as namespace:
        factory = NamespaceSockets(namespace, spares=SpareSockets())
        for _ in range(5):
            (await factory.stream(socket.AF_INET)).close()
        factory.close()
        await namespace.run(own_namespace)


async def test_over_the_budget_a_pod_gets_no_socket_and_keeps_none(made):
    spares = SpareSockets()
    with Namespace.duplicate(made[0].descriptor) as namespace:
        factory = NamespaceSockets(namespace, budget=DescriptorBudget(limit=16, reserve=16), spares=spares)
        for _ in range(5):
            with pytest.raises(OSError, match="Too many open files"):
                await factory.stream(socket.AF_INET)
            with pytest.raises(OSError, match="Too many open files"):
                await factory.datagram(socket.AF_INET)
        assert spares.kept == 0
        factory.close()
        await namespace.run(own_namespace)


async def test_a_socket_keeps_working_after_the_namespace_was_closed(pod):
    with Namespace.duplicate(pod.namespace.descriptor) as namespace:
        (sock,) = await namespace.sockets(socket.AF_INET, socket.SOCK_STREAM)
    with sock, made_socket(pod.namespace, socket.AF_INET) as listener:
        listener.bind((pod.ipv4, 7000))
        listener.listen()
        sock.connect_ex((pod.ipv4, 7000))
        far, _ = listener.accept()
        far.close()
