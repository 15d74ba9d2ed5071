"""The exceptions of the cryptography package for malformed certificates and lists."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All exceptions that reading one, or a part of one, may raise. The last three are no ValueErrors."""
