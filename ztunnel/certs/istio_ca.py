"""The two messages of CreateCertificate, as bytes.

The generated modules import grpcio, which only a process that talks to a CA should load. So they are imported
when the first message is made.
"""

from __future__ import annotations

from ztunnel.model.identity import Identity


def encode_request(csr: str, lifetime_seconds: int, impersonated: Identity | None) -> bytes:
    """Returns an IstioCertificateRequest.

    ``impersonated``: the identity for which a node proxy asks; None: its own.
    """
    from ztunnel.pb.google.protobuf import Struct, Value  # noqa: PLC0415  # see the module's text
    from ztunnel.pb.istio.v1.auth import IstioCertificateRequest  # noqa: PLC0415  # see the module's text

    metadata = None
    if impersonated is not None:
        metadata = Struct(fields={"ImpersonatedIdentity": Value(string_value=str(impersonated))})
    return bytes(IstioCertificateRequest(csr=csr, validity_duration=lifetime_seconds, metadata=metadata))


def decode_response(data: bytes) -> list[str]:
    """Returns the chain in an IstioCertificateResponse.

    Raises ValueError if the bytes are not such a message.
    """
    from ztunnel.pb.istio.v1.auth import IstioCertificateResponse  # noqa: PLC0415  # see the module's text

    try:
        chain: list[object] = [*IstioCertificateResponse.parse(data).cert_chain]
    except Exception as error:  # bad bytes may raise any exception in the decoder
        raise ValueError(f"it is not a certificate response: {error}") from error
    # The decoder accepts a field of another wire type, so types are checked here.
    texts = [one for one in chain if isinstance(one, str)]
    if len(texts) != len(chain):
        raise ValueError("it is not a certificate response: its chain is not text")
    return texts
