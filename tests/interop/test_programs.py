"""Programs that others wrote, through the mesh: their own clients talk to their own servers."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.needs import needs_programs
from tests.support.namespaces import needs_namespaces
from tests.support.pod import MeshPod, eventually
from tests.support.processes import said
from tests.support.two_nodes import TwoNodes
from ztunnel.demo.processes import Process

pytestmark = needs_namespaces

POSTGRESQL = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
MARIADBD = shutil.which("mariadbd", path="/usr/sbin:/usr/libexec:/usr/bin") or "mariadbd"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with TwoNodes.open() as mesh:
        yield mesh


@contextmanager
def running(nodes: TwoNodes, pod: MeshPod, name: str, *command: str) -> Iterator[Process]:
    """A server in a pod, for as long as the block runs."""
    process = nodes.mesh.machine.spawn(
        name, command, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, namespace=pod.pod.namespace
    )
    try:
        yield process
    finally:
        process.stop(grace=10)


async def succeeds(pod: MeshPod, *command: str, timeout: float = 60) -> str:
    """What a program in a pod says, and that it is content."""
    done = await trio.to_thread.run_sync(partial(pod.run, *command, timeout=timeout))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


async def answers(pod: MeshPod, *command: str) -> None:
    """Wait until a server takes connections."""
    with trio.fail_after(60):
        while True:
            done = await trio.to_thread.run_sync(partial(pod.run, *command, timeout=20))
            if done.returncode == 0:
                return
            await trio.sleep(0.2)


async def went_over_hbone(pod: MeshPod, port: int) -> None:
    """The access log of the server's ztunnel has a connection to the port with the client's identity."""

    def seen() -> bool:
        return any(
            str(entry.get("dst.hbone_addr", "")).endswith(f":{port}")
            and "/sa/client" in entry.get("src.identity", "")
            for entry in pod.access_log(direction="inbound")
        )

    await eventually(seen, f"a connection over HBONE to {port}")


@needs_programs("redis-server", "redis-cli")
async def test_redis(nodes: TwoNodes, tmp_path: Path) -> None:
    """Commands, a large value, pipelines, publish and subscribe, a blocking read that waits idle."""
    server, client = nodes.server, nodes.client
    command = (
        "redis-server",
        "--port",
        "6379",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    )
    ask = ("redis-cli", "-h", server.ipv4)
    with running(nodes, server, "redis", *command):
        await answers(client, *ask, "ping")
        assert await succeeds(client, *ask, "set", "key", "v" * 100_000) == "OK\n"
        assert await succeeds(client, *ask, "strlen", "key") == "100000\n"
        assert len(await succeeds(client, *ask, "get", "key")) == 100_001
        told = await succeeds(
            client,
            "redis-benchmark",
            "-h",
            server.ipv4,
            "-q",
            "-n",
            "5000",
            "-c",
            "20",
            "-P",
            "8",
            "-t",
            "set,get,lpush",
        )
        assert told.count("requests per second") >= 3, told

        results: list[str] = []

        async def wait_for_word() -> None:
            results.append(await succeeds(client, *ask, "blpop", "queue", "30"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_word)
            await trio.sleep(3)
            await succeeds(client, *ask, "rpush", "queue", "at last")
        assert results == ["queue\nat last\n"]

        subscribe = [*ask, "subscribe", "news"]
        machine = nodes.mesh.machine
        subscriber = machine.spawn("subscriber", subscribe, env=ENVIRONMENT, namespace=client.pod.namespace)
        await eventually(lambda: "subscribe" in subscriber.output(), "subscribed")
        assert await succeeds(client, *ask, "publish", "news", "flash") == "1\n"
        await eventually(lambda: "flash" in subscriber.output(), "told")
        subscriber.stop()
    await went_over_hbone(server, 6379)


@needs_programs("pg_ctlcluster", "psql", "setpriv")
async def test_postgresql(nodes: TwoNodes) -> None:
    """Queries, COPY both ways, cancelled queries, an answer after a while of silence, an idle session."""
    server, client = nodes.server, nodes.client
    nobody = pwd.getpwnam("nobody")
    binaries = POSTGRESQL
    data = nodes.mesh.machine.directory / "pg"
    data.mkdir()
    nodes.mesh.machine.directory.chmod(0o755)
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    as_nobody = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    initdb = [*as_nobody, str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "me", "--no-sync"]
    made = await trio.to_thread.run_sync(
        partial(subprocess.run, initdb, capture_output=True, text=True, check=False)
    )
    assert made.returncode == 0, made.stderr
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all 0.0.0.0/0 trust\n")
    settings = ("listen_addresses=0.0.0.0", f"unix_socket_directories={data}", "fsync=off")
    options = [word for setting in settings for word in ("-c", setting)]
    command = (*as_nobody, str(binaries / "postgres"), "-D", str(data), *options)
    ask = ("psql", "-h", server.ipv4, "-U", "me", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-At", "-c")
    with running(nodes, server, "postgres", *command):
        await answers(client, *ask, "select 1")
        # A session that says nothing for as long as all the others take.
        go_on = nodes.mesh.machine.directory / "go-on"
        wait = f"\\! while [ ! -e {go_on} ]; do sleep 0.1; done"
        script = [word for line in ("select 'first'", wait, "select 'last'") for word in ("-c", line)]
        idle = nodes.mesh.machine.spawn(
            "idle", [*ask[:-1], *script], env=ENVIRONMENT, namespace=client.pod.namespace
        )
        await eventually(lambda: "first" in idle.output(), "in the session", 30)
        await succeeds(
            client, *ask, "create table t as select i, md5(i::text) as h from generate_series(1, 200000) as i"
        )
        assert await succeeds(client, *ask, "select count(*), sum(i) from t") == "200000|20000100000\n"
        copied = await succeeds(client, *ask, "copy t to stdout")
        assert copied.count("\n") == 200_000
        rows_file = nodes.mesh.machine.directory / "copy"
        rows_file.write_text(copied)
        await succeeds(client, *ask, "create table u (i int, h text)")
        await succeeds(client, *ask, f"\\copy u from '{rows_file}'")
        assert await succeeds(client, *ask, "select count(*) from t natural join u") == "200000\n"
        slow = await trio.to_thread.run_sync(
            partial(client.run, *ask, "set statement_timeout = 500; select pg_sleep(30)", timeout=20)
        )
        assert "canceling statement due to statement timeout" in slow.stderr
        await cancelled_by_its_client(nodes, ask)
        assert await succeeds(client, *ask, "select pg_sleep(3), 'still here'") == "|still here\n"
        go_on.touch()
        assert await trio.to_thread.run_sync(idle.wait, 60) == 0, idle.output()
        assert idle.output() == "first\nlast\n"
    await went_over_hbone(server, 5432)


async def cancelled_by_its_client(nodes: TwoNodes, ask: tuple[str, ...]) -> None:
    """Ctrl-C in psql: the cancellation comes over a second connection, which ends without an answer."""
    query = "select pg_sleep(300)"
    running_query = f"select count(*) from pg_stat_activity where query = '{query}'"
    psql = nodes.mesh.machine.spawn(
        "psql", [*ask, query], env=ENVIRONMENT, namespace=nodes.client.pod.namespace
    )
    with trio.fail_after(60):
        while await succeeds(nodes.client, *ask, running_query) != "1\n":  # noqa: ASYNC110  # another process
            await trio.sleep(0.1)
    psql.signal(signal.SIGINT)
    assert await trio.to_thread.run_sync(psql.wait, 60) == 1
    assert "canceling statement due to user request" in psql.output()
    assert await succeeds(nodes.client, *ask, running_query) == "0\n"


@needs_programs("mariadbd", "mariadb", "setpriv")
async def test_mariadb(nodes: TwoNodes) -> None:
    """The server speaks first. Queries, rows both ways, one that is cancelled, one that waits in silence."""
    server, client = nodes.server, nodes.client
    nobody = pwd.getpwnam("nobody")
    directory = nodes.mesh.machine.directory
    directory.chmod(0o755)
    data = directory / "maria"
    data.mkdir()
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    as_nobody = ("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups")
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
    made = await trio.to_thread.run_sync(
        partial(subprocess.run, [*as_nobody, *install], capture_output=True, text=True, check=False)
    )
    assert made.returncode == 0, made.stdout + made.stderr
    first = directory / "first.sql"
    first.write_text("create database d;\ncreate user 'me'@'%';\ngrant all on *.* to 'me'@'%';\n")
    command = (
        *as_nobody,
        *(MARIADBD, "--no-defaults", f"--datadir={data}", f"--socket={data}/socket", f"--init-file={first}"),
        *("--bind-address=0.0.0.0", "--port=3306", "--skip-name-resolve", "--local-infile=1"),
        "--innodb-flush-log-at-trx-commit=0",
    )
    ask = ("mariadb", "--no-defaults", "-h", server.ipv4, "-u", "me", "--local-infile=1", "-BN", "d", "-e")
    with running(nodes, server, "mariadb", *command):
        await answers(client, *ask, "select 1")
        await succeeds(
            client, *ask, "create table t as select seq as i, md5(seq) as h from seq_1_to_100000", timeout=120
        )
        assert await succeeds(client, *ask, "select count(*), sum(i) from t") == "100000\t5000050000\n"
        rows = await succeeds(client, *ask, "select i, h from t", timeout=120)
        assert rows.count("\n") == 100_000
        rows_file = directory / "rows"
        rows_file.write_text(rows)
        load = f"create table u (i int, h char(32)); load data local infile '{rows_file}' into table u"
        await succeeds(client, *ask, load, timeout=120)
        same = "select count(*) from t join u using (i) where t.h = u.h"
        await succeeds(client, *ask, "alter table u add primary key (i)", timeout=120)
        assert await succeeds(client, *ask, same, timeout=120) == "100000\n"
        slow = await trio.to_thread.run_sync(
            partial(
                client.run, *ask, "set statement max_statement_time = 0.5 for select sleep(300)", timeout=120
            )
        )
        assert "max_statement_time exceeded" in slow.stderr
        assert await succeeds(client, *ask, "select sleep(3), 'still here'") == "0\tstill here\n"
    await went_over_hbone(server, 3306)


@needs_programs("iperf3")
async def test_iperf3(nodes: TwoNodes) -> None:
    """Four streams up, four down, and both at once."""
    for number, way in enumerate(([], ["-R"], ["--bidir"])):
        # A server for each: for a moment after a test it says to the next client that it is busy. And a name
        # for each: under one name the output of the server before would say that this one is listening.
        with running(nodes, nodes.server, f"iperf3-{number}", "iperf3", "-s", "-1", "--forceflush") as served:
            await said(served, "listening", 60)
            try:
                told = await succeeds(
                    nodes.client, "iperf3", "-c", nodes.server.ipv4, "-P", "4", "-t", "2", *way
                )
            except AssertionError as error:
                error.add_note(f"its server: {served.output()[-3000:]}")
                for pod in (nodes.client, nodes.server):
                    ends = [entry for entry in pod.access_log() if ":5201" in str(entry)]
                    error.add_note(f"the last connections of {pod.name}: {ends[-6:]}")
                raise
            assert "iperf Done" in told
    await went_over_hbone(nodes.server, 5201)


@needs_programs("curl", "wrk")
async def test_http(nodes: TwoNodes, tmp_path: Path) -> None:
    """A file of 50 MB by curl, a range of it, and keep-alive load by wrk."""
    (tmp_path / "big").write_bytes(bytes(range(250)) * 200_000)
    (tmp_path / "index.html").write_text("hello")
    url = f"http://{nodes.server.ipv4}:8000"
    with running(
        nodes, nodes.server, "http", "/usr/bin/python3", "-m", "http.server", "8000", "-d", str(tmp_path)
    ):
        await answers(nodes.client, "curl", "-sf", url)
        await succeeds(nodes.client, "curl", "-sf", "-o", str(tmp_path / "copy"), f"{url}/big")
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "big").read_bytes()
        told = await succeeds(nodes.client, "wrk", "-t", "1", "-c", "8", "-d", "2", url)
        assert "Requests/sec" in told
        assert "Socket errors" not in told
    await went_over_hbone(nodes.server, 8000)
