"""The certificates that the connections of a data plane wait for."""

from __future__ import annotations

import pytest
import trio

from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.messages import CertificateWanted
from ztunnel.model.identity import Identity
from ztunnel.proxy.certificates import CertificateStore
from ztunnel.tls.context import TlsOptions
from ztunnel.tunnel.failures import IdentityUnavailableError

NOW = 1_700_000_000.0
WHO = Identity("cluster.local", "default", "client")
CA = IssuingCa(NOW)


class Store(CertificateStore):
    """A store whose wishes are kept and whose clock is set."""

    def __init__(self) -> None:
        self.wanted: list[Identity] = []
        self.now = NOW
        super().__init__(self._ask, TlsOptions(), lambda: self.now)

    def _ask(self, message: CertificateWanted) -> None:
        self.wanted.append(message.identity)


def certificate(lifetime: float = 3600):
    return CA.certify(WHO, not_before=NOW, not_after=NOW + lifetime)


async def refused(store: Store, reasons: list[str]) -> None:
    with pytest.raises(IdentityUnavailableError) as info:
        await store.get(WHO)
    reasons.append(str(info.value))


async def test_one_request_serves_all_who_wait(autojump_clock):
    store, got = Store(), []

    async def one() -> None:
        got.append(await store.get(WHO))

    issued = certificate()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert store.wanted == [WHO]
        assert store.state(WHO) == "it is being fetched"
        store.issued(issued)
    assert got == [issued] * 3
    assert await store.get(WHO) is issued
    assert store.wanted == [WHO]
    assert store.state(WHO) == issued.not_after


async def test_who_was_never_asked_for_has_no_state_and_cannot_fail():
    store = Store()
    assert store.state(WHO) is None
    store.failed(WHO, "late")
    store.forgotten(WHO)
    assert store.state(WHO) is None


@pytest.mark.parametrize(
    ("tell", "reason"),
    [
        (lambda store: store.failed(WHO, "the CA is away"), "the CA is away"),
        (lambda store: store.forgotten(WHO), "the identity is no longer needed"),
    ],
    ids=["failed", "forgotten"],
)
async def test_all_who_wait_are_told_why_there_is_none(autojump_clock, tell, reason):
    store = Store()
    reasons: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, store, reasons)
        nursery.start_soon(refused, store, reasons)
        await trio.testing.wait_all_tasks_blocked()
        tell(store)
    assert len(reasons) == 2
    assert all(reason in text for text in reasons)


async def test_the_reason_is_kept_and_the_next_connection_asks_again(autojump_clock, nursery):
    store = Store()
    reasons: list[str] = []
    nursery.start_soon(refused, store, reasons)
    await trio.testing.wait_all_tasks_blocked()
    store.failed(WHO, "the CA is away")
    await trio.testing.wait_all_tasks_blocked()
    assert store.state(WHO) == "the CA is away"
    nursery.start_soon(store.get, WHO)
    await trio.testing.wait_all_tasks_blocked()
    assert store.wanted == [WHO, WHO]
    store.issued(certificate())


async def test_an_expired_certificate_is_asked_for_and_a_failed_renewal_keeps_a_valid_one(
    autojump_clock, nursery
):
    store = Store()
    first = certificate(60)
    store.issued(first)
    store.failed(WHO, "the CA is away")
    assert await store.get(WHO) is first
    store.now = first.not_after
    nursery.start_soon(store.get, WHO)
    await trio.testing.wait_all_tasks_blocked()
    assert store.wanted == [WHO]
    store.issued(certificate())


def test_tls_contexts_are_made_once_and_anew_for_a_new_certificate_or_new_revocations():
    store = Store()
    first = certificate()
    store.issued(first)
    for make in (store.client, store.server):
        made = make(first)
        assert make(first) is made
        store.revocations(None)
        again = make(first)
        assert again is not made
        store.issued(certificate())
        # A connection that began with the old one gets a context that nobody keeps.
        old = make(first)
        assert old is not again
        assert make(first) is not old
        store.issued(first)
