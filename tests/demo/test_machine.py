"""Machines made of namespaces: they work, and they vanish."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.namespaces import needs_namespaces
from ztunnel.demo import machine as machine_module
from ztunnel.demo.capture import Capture, Segment, parse_segment, reassemble, tls_records
from ztunnel.demo.machine import InterruptedByError, Machine, interruptible, sweep
from ztunnel.demo.namespaces import PUBLISHED, OwnedNamespace
from ztunnel.demo.network import BACKENDS, Network, Pod, netlink
from ztunnel.demo.processes import NotReadyError, ProcessEndedError, run
from ztunnel.demo.redirection import PACKET_MARK, RedirectionOptions

_IP6T_SO_ORIGINAL_DST = 80
_SO_ORIGINAL_DST = 80
_SO_MARK = 36


def _listen(pod: Pod, port: int) -> socket.socket:
    with pod.namespace.entered():
        listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen()
    listener.settimeout(5)
    return listener


def _connect(pod: Pod, address: str, port: int, mark: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pod.namespace.entered():
        connection = socket.socket(family)
    connection.settimeout(5)
    if mark:
        connection.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    connection.connect((address, port))
    return connection


def _original_destination(connection: socket.socket) -> tuple[str, int]:
    peer = connection.getpeername()[0]
    if peer.startswith("::ffff:"):
        raw = connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
        return socket.inet_ntoa(raw[4:8]), struct.unpack("!H", raw[2:4])[0]
    raw = connection.getsockopt(socket.IPPROTO_IPV6, _IP6T_SO_ORIGINAL_DST, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack("!H", raw[2:4])[0]


@needs_namespaces
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", [4, 6])
def test_redirection_leads_both_ways_through_ztunnels_ports(backend: str, version: int) -> None:
    with Machine.open() as machine:
        network = Network(machine)
        captured = network.node("a").pod("captured")
        plain = network.node("b").pod("plain")
        assert network.redirect(captured, RedirectionOptions(), backend=backend) == backend
        here, there = (captured.ipv4, plain.ipv4) if version == 4 else (captured.ipv6 or "", plain.ipv6 or "")
        with _listen(captured, 15001) as outbound, _connect(captured, there, 8080) as application:
            accepted, _ = outbound.accept()
            with accepted:
                assert _original_destination(accepted) == (there, 8080)
                application.sendall(b"x")
                assert accepted.recv(1) == b"x"
        with _listen(captured, 15006) as inbound, _connect(plain, here, 8080):
            accepted, _ = inbound.accept()
            with accepted:
                assert _original_destination(accepted) == (here, 8080)
        with _listen(captured, 15008) as hbone, _connect(plain, here, 15008):
            hbone.accept()[0].close()
        with _listen(plain, 8081) as direct, _connect(captured, there, 8081, mark=PACKET_MARK):
            direct.accept()[0].close()


@needs_namespaces
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("version", [4, 6])
def test_the_application_can_be_reached_with_the_clients_address(backend: str, version: int) -> None:
    with Machine.open() as machine:
        network = Network(machine)
        pod = network.node("a").pod("pod")
        network.redirect(pod, RedirectionOptions(), backend=backend)
        client, own = ("10.77.2.99", pod.ipv4) if version == 4 else ("fd77:2::99", pod.ipv6 or "")
        with _listen(pod, 8080) as application:
            with pod.namespace.entered():
                proxy = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
            with proxy:
                proxy.settimeout(5)
                proxy.setsockopt(socket.SOL_SOCKET, _SO_MARK, PACKET_MARK)
                if version == 4:
                    proxy.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
                else:
                    proxy.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
                proxy.bind((client, 0))
                proxy.connect((own, 8080))
                accepted, peer = application.accept()
                with accepted:
                    assert peer[0].removeprefix("::ffff:") == client
                    accepted.sendall(b"answer")
                    assert proxy.recv(6) == b"answer"


@needs_namespaces
def test_dns_capture_and_probe_exemption() -> None:
    with Machine.open() as machine:
        network = Network(machine)
        pod = network.node("a").pod("pod")
        network.redirect(pod, RedirectionOptions(dns=True))
        with pod.namespace.entered():
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server, client:
            server.bind(("127.0.0.1", 15053))
            server.settimeout(5)
            client.settimeout(5)
            client.sendto(b"question", ("10.96.0.10", 53))
            question, source = server.recvfrom(100)
            assert question == b"question"
            server.sendto(b"answer", source)
            # The answer comes from where the question went, whoever gave it.
            assert client.recvfrom(100) == (b"answer", ("10.96.0.10", 53))
        # A probe reaches the application though nothing listens on 15006.
        node = network.node("a").namespace
        with netlink(node) as routes:
            routes.addr(
                "add", index=routes.link_lookup(ifname="lo")[0], address="169.254.7.127", prefixlen=32
            )
        with _listen(pod, 8080) as application:
            with node.entered():
                probe = socket.socket(socket.AF_INET)
            with probe:
                probe.settimeout(5)
                probe.bind(("169.254.7.127", 0))
                probe.connect((pod.ipv4, 8080))
                accepted, _ = application.accept()
                accepted.close()


@needs_namespaces
def test_nodes_and_pods_reach_each_other_and_the_wire_shows_it() -> None:
    with Machine.open() as machine:
        network = Network(machine)
        first, near = network.node("a").pod("first"), network.node("a").pod("near")
        far = network.node("c").pod("far")
        with Capture(network.wire, network.wire_port(network.node("a"))) as capture:
            for server in (near, far):
                for address in server.addresses:
                    with _listen(server, 8080) as listener, _connect(first, address, 8080) as client:
                        accepted, peer = listener.accept()
                        with accepted:
                            assert peer[0].removeprefix("::ffff:") in first.addresses
                            client.sendall(b"question from " + server.name.encode())
                            assert accepted.recv(100).startswith(b"question")
            streams = reassemble(capture.read())
            assert capture.lost() == 0
        texts = b"".join(streams.values())
        assert b"question from far" in texts
        assert b"question from near" not in texts
        assert {flow.dst for flow, data in streams.items() if data} == set(far.addresses)


@needs_namespaces
def test_everything_is_gone_afterwards_also_after_an_exception() -> None:
    with pytest.raises(RuntimeError, match="on purpose"), Machine.open() as machine:  # noqa: PT012 - all of it
        namespace = machine.namespace("pod")
        process = machine.spawn("sleeper", ["sleep", "60"], namespace=namespace)
        assert (PUBLISHED / namespace.name).exists()
        raise RuntimeError("on purpose")
    assert process.returncode == -signal.SIGKILL
    assert not machine.directory.exists()
    assert not list(PUBLISHED.glob(f"{machine.name}*"))


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cleans_up(number: signal.Signals) -> None:
    script = (
        "import signal, sys\n"
        "from ztunnel.demo.machine import Machine, interruptible\n"
        "with interruptible(), Machine.open() as machine:\n"
        "    machine.spawn('sleeper', ['sleep', '60'], namespace=machine.namespace('pod'))\n"
        "    print(machine.name, flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert list(PUBLISHED.glob(f"{name}-*"))
        child.send_signal(number)
        assert child.wait(10) == 128 + number
    assert not list(PUBLISHED.glob(f"{name}*"))
    assert not (Path(tempfile.gettempdir()) / name).exists()


@needs_namespaces
def test_what_a_killed_owner_left_is_swept_and_the_living_are_spared() -> None:
    script = (
        "import os, signal\n"
        "from ztunnel.demo.machine import Machine\n"
        "with Machine.open() as machine:\n"
        "    process = machine.spawn('sleeper', ['sleep', '60'], namespace=machine.namespace('pod'))\n"
        "    print(machine.name, process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with Machine.open() as living:
        living.namespace("pod")
        dead = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        name, pid = dead.stdout.split()
        assert Path(f"/proc/{pid}").exists()
        assert name in sweep() or not (Path(tempfile.gettempdir()) / name).exists()
        assert not list(PUBLISHED.glob(f"{name}*"))
        deadline = time.monotonic() + 5
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline
        assert list(PUBLISHED.glob(f"{living.name}-*"))
        assert living.directory.exists()


def test_a_process_that_ends_is_noticed_and_one_that_stalls_too() -> None:
    with Machine.open() as machine:
        ended = machine.spawn("ended", [sys.executable, "-c", "print('last words'); raise SystemExit(3)"])
        with pytest.raises(ProcessEndedError, match=r"status 3(?s:.*)last words"):
            ended.wait_until(lambda: None, what="ready", timeout=20)
        stalled = machine.spawn("stalled", ["sleep", "60"])
        with pytest.raises(NotReadyError, match="stalled: not ready"):
            stalled.wait_until(lambda: False, what="ready", timeout=0.1)
        with pytest.raises(NotReadyError, match="still runs"):
            stalled.wait(0.05)
        assert stalled.stop(grace=5) == -signal.SIGTERM


def test_the_last_words_of_a_process_count_though_it_has_ended() -> None:
    with Machine.open() as machine:
        ended = machine.spawn("ended", [sys.executable, "-c", "print('last words')"])
        assert ended.wait(20) == 0
        tries = iter([False, True])
        assert ended.wait_until(lambda: next(tries), what="heard", timeout=20)


def test_only_the_first_signal_interrupts() -> None:
    with pytest.raises(InterruptedByError) as caught, interruptible():  # noqa: PT012 - what follows must not run
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not interrupted")
    assert caught.value.code == 143


def test_a_directory_that_is_no_machine_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    stranger = tmp_path / f"{machine_module.PREFIX}somebody"
    stranger.mkdir()
    (stranger / "file").write_text("precious")
    assert sweep() == []
    assert (stranger / "file").read_text() == "precious"


@needs_namespaces
def test_a_command_runs_inside_the_namespace() -> None:
    namespace = OwnedNamespace.make("zt-test")
    try:
        inside = run(["readlink", "/proc/self/ns/net"], namespace=namespace).stdout.strip()
        assert inside == f"net:[{namespace.inode}]"
        assert Path("/proc/self/ns/net").readlink().name != inside
    finally:
        namespace.close()


def _frame(payload: bytes, *, sequence: int = 1, syn: bool = False, version: int = 4) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 1000, 80, sequence, 0, 0x50, 0x02 if syn else 0x10, 0, 0, 0) + payload
    if version == 4:
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
        )
        return bytes(12) + b"\x08\x00" + header + tcp
    addresses = socket.inet_pton(socket.AF_INET6, "fd00::1") + socket.inet_pton(socket.AF_INET6, "fd00::2")
    return bytes(12) + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + addresses + tcp


@pytest.mark.parametrize("version", [4, 6])
def test_a_segment_is_read_without_the_padding_of_short_frames(version: int) -> None:
    segment = parse_segment(_frame(b"ab", version=version) + bytes(20))
    assert segment is not None
    assert (segment.src_port, segment.dst_port, segment.payload) == (1000, 80, b"ab")


def test_frames_that_are_cut_short_or_not_tcp_are_skipped() -> None:
    frame = _frame(b"")
    assert all(parse_segment(frame[:length]) is None for length in range(len(frame)))
    assert parse_segment(bytes(12) + b"\x08\x06" + bytes(46)) is None


def test_reassembly_orders_and_drops_what_came_twice() -> None:
    def segment(sequence: int, payload: bytes, *, syn: bool = False) -> Segment:
        return Segment("a", 1, "b", 2, sequence, syn, payload)

    wrapped = 2**32 - 3
    segments = [
        segment(wrapped, b"", syn=True),
        segment(1, b"def"),
        segment((wrapped + 1) % 2**32, b"abc"),
        segment((wrapped + 1) % 2**32, b"abc"),
        segment(3, b"fgh"),
        segment(20, b"after a gap"),
    ]
    assert list(reassemble(segments).values()) == [b"abcdefgh"]


def test_tls_records_are_told_from_other_text() -> None:
    records = tls_records(b"\x16\x03\x01\x00\x02ab" + b"\x17\x03\x03\x00\x01c" + b"\x17\x03\x03\x00\xff")
    assert records is not None
    assert [(record.kind, record.length) for record in records] == [
        ("handshake", 2),
        ("application data", 1),
        ("application data", 255),
    ]
    assert tls_records(b"GET / HTTP/1.1\r\n") is None
