"""h2spec, an HTTP/2 conformance suite that others wrote, against 15008 of a real data plane, through TLS."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.data_plane import running_plane
from tests.support.hostile_peer import plain_port
from tests.tools import find_tool

NO_BODY = "it waits for the body of an answer, and a refusal (400 for its GET) has none"
NO_PRIORITY = "RFC 9113 section 5.3.2 has taken the priorities of RFC 7540 back: they are passed over"
NO_LENGTH = "its POST is refused with 400 whatever comes after it, and in a CONNECT the field has no meaning"

NOT_APPLICABLE = {
    "generic/2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream": NO_BODY,
    "generic/2: Sends a PRIORITY frame on half-closed (remote) stream": NO_BODY,
    "http2/4.2: Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE": (
        "what it sends exceeds the protocol's default; ours is 1 MiB, and is tested below"
    ),
    "http2/5.1.2: Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded": (
        "its GETs are refused with 400 and over at once, so they never exceed the limit; CONNECTs that do "
        "are refused one by one: test_streams_over_the_limit_are_refused_one_by_one"
    ),
    "http2/5.3.1: Sends HEADERS frame that depend on itself": NO_PRIORITY,
    "http2/5.3.1: Sends PRIORITY frame that depend on itself": NO_PRIORITY,
    'http2/8.1.2.6: Sends a HEADERS frame with the "content-length" header field which does not equal the '
    "DATA frame payload length": NO_LENGTH,
    'http2/8.1.2.6: Sends a HEADERS frame with the "content-length" header field which does not equal the '
    "sum of the multiple DATA frames payload length": NO_LENGTH,
}
"""Cases that a server of nothing but CONNECT does not have to pass, and why."""


SECTIONS = (
    ("generic", "hpack"),
    ("http2/3", "http2/4", "http2/7"),
    ("http2/5",),
    ("http2/6",),
    ("http2/8",),
)
"""All of h2spec. They run at the same time, because most of it is waiting for what must not come."""


@pytest.fixture(autouse=True)
def _needs_h2spec() -> None:
    """Skip before anything runs: from inside a nursery the reason would be lost in an ExceptionGroup."""
    find_tool("h2spec")


@asynccontextmanager
async def plain() -> AsyncIterator[int]:
    """A data plane, and the plain port that leads to its 15008."""
    async with running_plane() as control, plain_port(control) as port:
        yield port


async def run(
    port: int, directory: Path, *arguments: str, patience: int = 5
) -> tuple[set[str], dict[str, str]]:
    """Run h2spec. Returns the names of the cases that were run, and why those failed that did.

    patience: seconds that h2spec waits for each answer; some cases pass when it has waited in vain.
    """
    report = directory / "report.xml"
    command = [find_tool("h2spec"), *arguments, "-p", str(port), "-o", str(patience), "-j", str(report)]
    with trio.fail_after(600):
        done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    assert report.exists(), done.stdout + done.stderr
    text = re.sub(rb"[\x00-\x08\x0b-\x1f]", b"?", report.read_bytes())
    names: set[str] = set()
    failed: dict[str, str] = {}
    for case in ET.fromstring(text).iter("testcase"):
        name = f"{case.get('package')}: {case.get('classname')}"
        if case.find("skipped") is None:
            names.add(name)
        if case.find("failure") is not None or case.find("error") is not None:
            failed[name] = "".join(case.itertext()).strip()
    return names, failed


@pytest.mark.slow
async def test_every_case_that_applies_to_a_connect_server_passes(tmp_path: Path) -> None:
    names: set[str] = set()
    failed: dict[str, str] = {}

    async def part(port: int, number: int, sections: tuple[str, ...]) -> None:
        directory = tmp_path / str(number)
        directory.mkdir()
        found, wrong = await run(port, directory, "--strict", *sections)
        names.update(found)
        failed.update(wrong)

    async with plain() as port:
        async with trio.open_nursery() as nursery:
            for number, sections in enumerate(SECTIONS):
                nursery.start_soon(part, port, number, sections)
        assert len(names) > 130
        unexpected = failed.keys() - NOT_APPLICABLE.keys()
        if unexpected:
            # On a busy machine an answer may take longer than h2spec waits: these sections get more time, but
            # less than until we close a connection because h2spec answers no PING: that would pass for an
            # answer.
            again = {name.partition(":")[0] for name in unexpected}
            _, still = await run(port, tmp_path, "--strict", *sorted(again), patience=12)
            failed = {name: why for name, why in failed.items() if name not in unexpected or name in still}
    assert {name: why for name, why in failed.items() if name not in NOT_APPLICABLE} == {}
    # What passes by now, or is not there any more, must not be listed.
    assert set(NOT_APPLICABLE) == set(failed)


async def test_a_frame_over_our_own_size_is_answered_as_it_should(tmp_path: Path) -> None:
    async with plain() as port:
        names, failed = await run(port, tmp_path, "http2/4.2/3", "--max-header-length", "300000")
    assert len(names) == 1
    assert failed == {}
