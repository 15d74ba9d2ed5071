"""CreateCertificate's two messages, as bytes.

The generated modules load grpcio, which only a process that talks to a CA is to have. So they are imported
when the first message is made.
"""

from __future__ import annotations

from ztunnel.model.identity import Identity


def encode_request(csr: str, lifetime_seconds: int, impersonated: Identity | None) -> bytes:
    """Returns an IstioCertificateRequest. ``impersonated``: for whom a node proxy asks; None: for itself."""
    from ztunnel.pb.google.protobuf import Struct, Value  # noqa: PLC0415  # see the module's text
    from ztunnel.pb.istio.v1.auth import IstioCertificateRequest  # noqa: PLC0415  # see the module's text

    metadata = None
    if impersonated is not None:
        metadata = Struct(fields={"ImpersonatedIdentity": Value(string_value=str(impersonated))})
    return bytes(IstioCertificateRequest(csr=csr, validity_duration=lifetime_seconds, metadata=metadata))


def decode_response(data: bytes) -> list[str]:
    """Returns the chain in an IstioCertificateResponse. Raises ValueError if the bytes are none."""
    from ztunnel.pb.istio.v1.auth import IstioCertificateResponse  # noqa: PLC0415  # see the module's text

    try:
        chain: list[object] = [*IstioCertificateResponse.parse(data).cert_chain]
    except Exception as error:  # the decoder raises whatever bad bytes lead it to
        raise ValueError(f"it is not a certificate response: {error}") from error
    # The decoder takes a field of another wire type for what it is, not for what it should be.
    texts = [one for one in chain if isinstance(one, str)]
    if len(texts) != len(chain):
        raise ValueError("it is not a certificate response: its chain is not text")
    return texts
