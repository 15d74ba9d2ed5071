"""The revocation file: each row of the table, and the task that watches it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.revoking import revoke
from ztunnel.certs.crl import CrlFile, CrlState, parse_crl_file, watch_crl
from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.messages import RevocationsChanged
from ztunnel.tls.revocation import InvalidRevocationListError, Revocations

NOW = 1_700_000_000.0
CA = IssuingCa(NOW)
FIRST = revoke(CA, [1], NOW)
SECOND = revoke(IssuingCa(NOW, name="other"), [2, 3], NOW)
MISSING = FileNotFoundError(2, "No such file or directory")


def test_an_empty_file_and_one_without_lists_revoke_nothing():
    assert parse_crl_file(b"") == parse_crl_file(b" \n") == parse_crl_file(CA.pem) == ()


def test_several_blocks_are_split_and_others_skipped():
    lists = parse_crl_file(b"\n" + FIRST + CA.pem + b"junk between\n" + SECOND)
    assert lists == (FIRST, SECOND)
    assert len(Revocations.parse(lists)) == 2


def test_one_der_list_is_taken_as_it_is():
    der = x509.load_pem_x509_crl(FIRST).public_bytes(Encoding.DER)
    assert parse_crl_file(der) == (der,)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300).filter(lambda data: bool(data.strip())), st.integers(0, 3))
def test_any_bytes_are_read_or_refused(junk, kind):
    data = [
        junk,
        FIRST + junk,
        b"-----BEGIN X509 CRL-----\n" + junk + b"\n-----END X509 CRL-----\n",
        FIRST[:-60] + junk,
    ][kind]
    with suppress(InvalidRevocationListError):
        for one in parse_crl_file(data):
            Revocations.parse([one])


def test_a_good_file_is_in_force_and_a_new_one_after_it():
    file = CrlFile("/crl")
    assert file.read(FIRST).changed == (FIRST,)
    assert file.read(FIRST).changed is None
    assert file.read(FIRST + SECOND).changed == (FIRST, SECOND)
    assert file.read(b"").changed == ()


def test_a_missing_file_is_waited_for():
    file = CrlFile("/crl")
    reading = file.read(MISSING)
    assert reading.changed is None
    assert reading.problem == (
        "the revocation file /crl cannot be read (No such file or directory); no certificate counts as "
        "revoked until it can be"
    )
    assert file.read(FIRST).changed == (FIRST,)


def test_a_file_that_is_invalid_at_first_turns_checking_off_for_good():
    file = CrlFile("/crl")
    assert "off until ztunnel is restarted" in (file.read(b"nonsense").problem or "")
    assert file.state is CrlState.OFF
    assert file.read(FIRST).changed is None
    assert file.read(FIRST).problem is None


@pytest.mark.parametrize("bad", [b"nonsense", MISSING])
def test_later_trouble_keeps_what_is_in_force(bad):
    file = CrlFile("/crl")
    file.read(FIRST)
    reading = file.read(bad)
    assert reading.changed is None
    assert "the lists read before stay in force" in (reading.problem or "")
    assert file.lists == (FIRST,)
    assert file.read(SECOND).changed == (SECOND,)


async def test_the_file_is_followed_through_the_swaps_of_a_kubernetes_volume(tmp_path: Path, nursery):
    send, receive = trio.open_memory_channel[RevocationsChanged](10)
    for number, content in enumerate((FIRST, SECOND)):
        (tmp_path / f"data{number}").mkdir()
        (tmp_path / f"data{number}" / "ca-crl.pem").write_bytes(content)
    (tmp_path / "..data").symlink_to("data0")
    (tmp_path / "ca-crl.pem").symlink_to("..data/ca-crl.pem")
    await nursery.start(watch_crl, tmp_path / "ca-crl.pem", send.send_nowait)
    assert receive.receive_nowait() == RevocationsChanged((FIRST,))
    await trio.testing.wait_all_tasks_blocked()
    (tmp_path / "..new").symlink_to("data1")
    os.rename(tmp_path / "..new", tmp_path / "..data")
    with trio.fail_after(10):
        assert await receive.receive() == RevocationsChanged((SECOND,))
    nursery.cancel_scope.cancel()


async def test_a_missing_directory_is_no_reason_to_fail(tmp_path: Path, nursery, autojump_clock):
    send, receive = trio.open_memory_channel[RevocationsChanged](10)
    path = tmp_path / "not" / "here" / "crl.pem"
    await nursery.start(watch_crl, path, send.send_nowait)
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()
    path.parent.mkdir(parents=True)
    path.write_bytes(FIRST)
    with trio.fail_after(60):
        assert await receive.receive() == RevocationsChanged((FIRST,))
    nursery.cancel_scope.cancel()
