"""What the real CNI agent says (tests/recorded/zds.json), read by us and said by the stand-in."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

from tests.support.fake_cni import FakeCni
from ztunnel.inpod.codec import AddPod, DeletePod, SnapshotSent, decode_request, encode_ack, encode_hello
from ztunnel.messages import PodInfo

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "zds.json").read_text())
PACKETS = [bytes.fromhex(each["packet"]) for each in RECORDED["packets"]]
DESCRIPTORS = [each["descriptors"] for each in RECORDED["packets"]]


def test_the_agents_packets_are_read():
    requests = [decode_request(packet, count) for packet, count in zip(PACKETS, DESCRIPTORS, strict=True)]
    first, second, end, passing, *deletes = requests
    assert isinstance(first, AddPod)
    assert isinstance(second, AddPod)
    assert {first.info.service_account, second.info.service_account} == {"sleep", "web"}  # type: ignore[union-attr]
    assert end == SnapshotSent()
    assert isinstance(passing, AddPod)
    assert passing.info == PodInfo("passing", "demo", "sleep")
    # The agent tells of an end twice: its CNI plugin is called, and it sees the pod go.
    assert deletes == [DeletePod(passing.uid)] * 2


def test_adds_carry_one_descriptor_and_nothing_else_does():
    adds = [isinstance(decode_request(*each), AddPod) for each in zip(PACKETS, DESCRIPTORS, strict=True)]
    assert [int(add) for add in adds] == DESCRIPTORS


def test_no_packet_is_too_long_for_our_buffer():
    assert not any(each["truncated"] for each in RECORDED["packets"])


class Listener:
    """A ztunnel that acknowledges all that it is told; ``packets`` has it."""

    def __init__(self, path: Path) -> None:
        self.packets: list[bytes] = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.sock.send(encode_hello())
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self.sock, 1024, 4)
            for descriptor in descriptors:
                os.close(descriptor)
            if not packet:
                return
            self.packets.append(packet)
            self.sock.send(encode_ack(None))


def test_the_stand_in_says_the_same_bytes(tmp_path):
    pods = [decode_request(packet, 1) for packet in PACKETS[:2]]
    passing = decode_request(PACKETS[3], 1)
    path = tmp_path / "zds.sock"
    with FakeCni(path) as cni, open("/proc/self/ns/net", "rb") as namespace:
        first = Listener(path)
        cni.wait_ready()
        for pod in pods:
            assert isinstance(pod, AddPod)
            assert pod.info is not None
            assert cni.add_pod(pod.uid, pod.info, namespace.fileno()).error == ""
        first.sock.shutdown(socket.SHUT_RDWR)
        first.thread.join(10)
        cni.connections[0].join()
        second = Listener(path)
        cni.wait_ready()
        assert isinstance(passing, AddPod)
        assert passing.info is not None
        cni.add_pod(passing.uid, passing.info, namespace.fileno())
        cni.delete_pod(passing.uid)
        second.sock.shutdown(socket.SHUT_RDWR)
        second.thread.join(10)
        first.sock.close()
        second.sock.close()
    snapshot, rest = second.packets[:3], second.packets[3:]
    assert sorted(snapshot[:2]) == sorted(PACKETS[:2])
    assert snapshot[2] == PACKETS[2]
    assert rest == PACKETS[3:5]
