"""What the control process has open: its servers and their clients, the log, and what it has dialled.

It keeps no account of its sockets, and gRPC makes its own: addresses say what they are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ztunnel.config.model import Config
from ztunnel.sockets.descriptor_views import shown_descriptors


def control_ports(config: Config) -> dict[int, str]:
    """The servers of the control process, by the ports that they listen on."""
    return {
        config.admin_addr.port: "admin",
        config.stats_addr.port: "metrics",
        config.readiness_addr.port: "readiness",
    }


def control_sockets(servers: Mapping[int, str], now: float) -> Iterator[dict[str, Any] | None]:
    """The descriptors of a process that carries no traffic, with their roles; None where others may run."""
    for shown in shown_descriptors({}, now):
        if shown is not None:
            name_role(shown, servers)
            if not shown["role"] and shown.get("local"):
                listens = shown.get("state", "LISTEN") == "LISTEN"  # a datagram socket has no state
                shown["role"] = "listener of the workers" if listens else "dialled by the control side"
        yield shown


def name_role(shown: dict[str, Any], servers: Mapping[int, str]) -> None:
    """Set the role of a descriptor of the control side's servers, if it is one and no pod's."""
    if shown["role"]:
        return
    if shown.get("state") and _port(shown["local"]) in servers:
        server = servers[_port(shown["local"])]
        listens = shown["state"] == "LISTEN"
        shown["role"] = f"{server} server" if listens else f"a client of the {server} server"


def _port(address: str) -> int:
    number = address.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0
