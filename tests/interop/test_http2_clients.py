"""HTTP/2 clients that others wrote, against 15008 of a real data plane; a shim has the client certificate."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import trio

from tests.needs import needs_programs, unavailable
from tests.support.data_plane import echo, running_plane, server
from tests.support.hostile_peer import plain_port
from tests.support.own_namespace import own_network_namespace  # noqa: F401 - used by pytest

REQUESTS = 2000
STREAMS = 40
BYTES = 300_000
GO_CLIENT = Path(__file__).with_name("http2_client")


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


async def build_go_client(directory: Path) -> Path:
    """Compile the client in `http2_client`: it needs Go and nothing beside its standard library."""
    if shutil.which("go") is None:
        unavailable("Go's HTTP/2 client is compiled; that needs Go (https://go.dev/dl/)")
    program = directory / "http2client"
    with trio.fail_after(600):
        built = await trio.run_process(
            ["nice", "go", "build", "-p", "1", "-buildvcs=false", "-o", str(program), "."],
            cwd=GO_CLIENT,
            env=os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": ""},
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
    said = built.stderr.decode()
    if "requires go >= " in said:
        unavailable(f"Go's HTTP/2 client needs a newer Go: {said.strip()}")
    assert built.returncode == 0, said
    return program


async def test_go(tmp_path: Path) -> None:
    """Go's net/http: tunnels to an echo, many at once, byte-exact; after a GET that is refused, one more."""
    program = await build_go_client(tmp_path)
    async with running_plane() as control, plain_port(control) as port, server(echo) as application:
        command = [program, f"127.0.0.1:{port}", f"127.0.0.1:{application}", str(STREAMS), str(BYTES)]
        with trio.fail_after(300):
            done = await trio.run_process(
                [str(word) for word in command], check=False, capture_stdout=True, capture_stderr=True
            )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"content\n"
