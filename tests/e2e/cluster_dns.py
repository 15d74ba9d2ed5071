"""The cluster's DNS server, in a pod and on a thread of its own: it answers whatever the test does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping

import dns.exception
import dns.message

from tests.e2e.name_server import NameServer
from ztunnel.demo.network import Pod


class ClusterDns:
    """Answers for ``names`` (and their addresses) at the pod's address, until `close`."""

    def __init__(self, pod: Pod, names: Mapping[str, list[str]]) -> None:
        self.address = pod.ipv4
        self.server = NameServer(names)
        with pod.namespace.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((pod.ipv4, 53))
        self._thread = threading.Thread(target=self._serve, name="cluster DNS", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            packet, peer = self._socket.recvfrom(65_535)
            if not packet:
                return
            try:
                query = dns.message.from_wire(packet)
            except dns.exception.DNSException:
                continue
            self._socket.sendto(self.server.answer(query).to_wire(), peer)

    def close(self) -> None:
        """Stop answering."""
        # An empty packet of its own is the sign to end.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()
