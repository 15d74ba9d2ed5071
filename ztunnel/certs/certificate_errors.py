"""What can go wrong between wanting a certificate and having one."""

from __future__ import annotations

from typing import ClassVar

from ztunnel.errors import ZtunnelError


class CaError(ZtunnelError):
    """There is no certificate. The text is what callers of the secret manager and the admin dump show."""

    code: ClassVar[str] = "ZT-CA-001"


class CaUnreachableError(CaError):
    """The CA answered with a gRPC status, or no answer came.

    ``status`` is the name of the gRPC status code, such as ``UNAVAILABLE``.
    """

    code: ClassVar[str] = "ZT-CA-002"

    def __init__(self, status: str, meaning: str, details: str) -> None:
        super().__init__(f"signing gRPC error ({meaning}): {details}")
        self.status = status


class CaChainError(CaError):
    """The CA answered, but not with a chain that can be used."""

    code: ClassVar[str] = "ZT-CA-003"


class WrongIdentityError(CaError):
    """The CA issued a certificate for another identity than the one asked for."""

    code: ClassVar[str] = "ZT-CA-004"

    def __init__(self, identity: str) -> None:
        super().__init__(f"did not find expected SAN: {identity}")


class CaTokenError(CaError):
    """The token that authenticates us to the CA cannot be had."""

    code: ClassVar[str] = "ZT-CA-005"


class CaRootsError(CaError):
    """The roots that the CA's own certificate is verified with cannot be had."""

    code: ClassVar[str] = "ZT-CA-006"


class ForgottenIdentityError(CaError):
    """While a caller waited, the last workload of the identity left this node."""

    code: ClassVar[str] = "ZT-CA-007"

    def __init__(self) -> None:
        super().__init__("the identity is no longer needed")
