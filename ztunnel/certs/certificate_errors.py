"""The errors of getting a certificate."""

from __future__ import annotations

from typing import ClassVar

from ztunnel.errors import ZtunnelError


class CaError(ZtunnelError):
    """There is no certificate. Callers of the secret manager and the admin dump show the text."""

    code: ClassVar[str] = "ZT-CA-001"


class CaUnreachableError(CaError):
    """The CA answered with a gRPC status, or did not answer.

    status: the name of the gRPC status code, such as ``UNAVAILABLE``.
    """

    code: ClassVar[str] = "ZT-CA-002"

    def __init__(self, status: str, meaning: str, details: str) -> None:
        super().__init__(f"signing gRPC error ({meaning}): {details}")
        self.status = status


class CaChainError(CaError):
    """The CA answered, but with a chain that cannot be used."""

    code: ClassVar[str] = "ZT-CA-003"


class WrongIdentityError(CaError):
    """The CA issued a certificate for another identity than the one asked for."""

    code: ClassVar[str] = "ZT-CA-004"

    def __init__(self, identity: str) -> None:
        super().__init__(f"did not find expected SAN: {identity}")


class CaTokenError(CaError):
    """The token that authenticates us to the CA cannot be read."""

    code: ClassVar[str] = "ZT-CA-005"


class CaRootsError(CaError):
    """The roots for verifying the CA's own certificate cannot be read."""

    code: ClassVar[str] = "ZT-CA-006"


class ForgottenIdentityError(CaError):
    """While a caller waited, the last workload of the identity left this node."""

    code: ClassVar[str] = "ZT-CA-007"

    def __init__(self) -> None:
        super().__init__("the identity is no longer needed")
