"""The errors between ztunnel and the CNI agent."""

from __future__ import annotations

from ztunnel.errors import ZtunnelError


class ZdsReadError(ZtunnelError):
    """A packet is not a valid request. It is refused, and the client reconnects."""

    code = "ZT-ZDS-001"

    def __str__(self) -> str:
        return f"failure to read message : {super().__str__()}"


class ZdsProtocolError(ZtunnelError):
    """The agent broke a rule of order or content; its messages cannot be trusted. This ends the process."""

    code = "ZT-ZDS-002"

    def __str__(self) -> str:
        return f"failure to process message : {super().__str__()}"


class PodStartError(ZtunnelError):
    """A pod's sockets could not be opened: ``Bind([::]:15008, Address already in use (os error 98))``."""

    code = "ZT-ZDS-003"

    def __str__(self) -> str:
        return f"failure to start proxy : {super().__str__()}"


class AgentUnreachableError(ZtunnelError):
    """The agent's socket cannot be connected to."""

    code = "ZT-ZDS-004"

    def __init__(self, path: str, details: str) -> None:
        super().__init__(path, details)
        self.path = path
        self.details = details

    def __str__(self) -> str:
        return (
            f'failed to connect to the Istio CNI node agent over "{self.path}", '
            f"is the node agent healthy? details: {self.details}"
        )
