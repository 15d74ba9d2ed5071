"""Each test of TLS runs twice: with records in Python, and with the compiled part."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import needs
from tests.support import tls_peers
from ztunnel.tls import context
from ztunnel.tls.accelerated import AcceleratedRecords, unavailable
from ztunnel.tls.records import Records

KINDS = {"python": Records, "compiled": AcceleratedRecords}


def require_accelerator() -> None:
    """Skip the test where the compiled part was switched off or not built; in CI it has to be there."""
    if os.environ.get("ZTUNNEL_TLS_ACCELERATOR") == "false":
        pytest.skip("ZTUNNEL_TLS_ACCELERATOR switches the compiled part off")
    if (why := unavailable()) is not None:
        needs.unavailable(f"TLS in C cannot be tested: {why}")


@pytest.fixture(scope="module", params=KINDS, autouse=True)
def records(request: pytest.FixtureRequest) -> Iterator[type[Records]]:
    """The class that new connections get."""
    if request.param == "compiled":
        require_accelerator()
    kind = KINDS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "records_kind", lambda **_: kind)
        patch.setattr(tls_peers.CLIENT_CONTEXT, "records", kind)
        patch.setattr(tls_peers.SERVER_CONTEXT, "records", kind)
        yield kind
