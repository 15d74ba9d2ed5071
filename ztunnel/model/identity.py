"""SPIFFE identities (https://spiffe.io/docs/latest/spiffe-about/spiffe-concepts/, Istio's form of them)."""

from __future__ import annotations

from dataclasses import dataclass

_SCHEME = "spiffe://"


class InvalidIdentityError(ValueError):
    """A text is not ``spiffe://{trust domain}/ns/{namespace}/sa/{service account}``."""


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """The identity of a workload: a trust domain, a namespace in it, and a service account in that.

    ``str()`` gives the SPIFFE URI. Parts may be empty: an identity from incomplete input is a value that
    differs from every real one.
    """

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def principal(self) -> str:
        """The form that policies compare: the URI without its scheme."""
        return str(self)[len(_SCHEME) :]

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Read a SPIFFE URI with exactly five path parts.

        Raises InvalidIdentityError for any other text, a trailing slash included.
        """
        if not uri.startswith(_SCHEME):
            raise InvalidIdentityError(f"{uri!r} does not start with {_SCHEME}")
        parts = uri[len(_SCHEME) :].split("/")
        match parts:
            case [trust_domain, "ns", namespace, "sa", service_account]:
                return cls(trust_domain, namespace, service_account)
        raise InvalidIdentityError(f"{uri!r} is not spiffe://{{trust domain}}/ns/{{namespace}}/sa/{{name}}")
