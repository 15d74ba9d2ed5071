"""HTTP/2 clients that others wrote, against 15008 of a real data plane; a shim has the client certificate."""

from __future__ import annotations

import re

import trio

from tests.needs import needs_programs
from tests.support.data_plane import running_plane
from tests.support.hostile_peer import plain_port
from tests.support.own_namespace import own_network_namespace  # noqa: F401 - used by pytest

REQUESTS = 2000


@needs_programs("h2load")
async def test_h2load() -> None:
    """Thousands of streams on a few connections: each GET is refused with 400, none is lost or reset."""
    async with running_plane() as control, plain_port(control) as port:
        command = ["h2load", "-n", str(REQUESTS), "-c", "4", "-m", "50", f"http://127.0.0.1:{port}/"]
        with trio.fail_after(300):
            done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    told = done.stdout.decode()
    assert done.returncode == 0, told + done.stderr.decode()
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (\w+)", told)}
    assert counts["done"] == REQUESTS, told
    assert counts["4xx"] == REQUESTS, told
    assert (counts["errored"], counts["timeout"]) == (0, 0), told
