"""``ztunnel demo`` in all the surroundings that a machine may offer, and interrupted."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.needs import needs_programs
from tests.support.census import take_census
from ztunnel.demo import processes
from ztunnel.demo.dedicated import ztunnel_command
from ztunnel.demo.machine import PREFIX
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.network import netlink

LIMIT = 60
STEPS = [
    "A mesh of three pods on two nodes",
    "An ordinary request from the pod client to the service web",
    "What the ztunnels on both sides logged about it",
    "What the wire between the nodes saw of it",
    "The pod stranger asks for the same, and a policy denies it",
    "The metrics that came of it",
]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for the demo's files; in the end nothing of any machine is in it or named after it."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)
        left = list(Path(name).iterdir())
        assert left == []


def environment(temporary: Path, **extra: str) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(temporary), "COLUMNS": "110"} | extra


def assert_story(output: str, *, steps: list[str]) -> None:
    output = " ".join(output.split())
    positions = [output.find(step) for step in steps]
    assert -1 not in positions, output
    assert positions == sorted(positions)
    assert "Hello from the pod web." in output
    assert 'direction="outbound"' in output
    assert 'direction="inbound"' in output
    assert "policy rejection" in output
    assert "istio_tcp_connections_opened_total" in output
    assert 'response_flags="DENY"' in output
    ending = output[output.find("That took") :]
    assert "Everything that was made has been removed. What to try next: ztunnel demo" in ending


def test_as_root(temporary: Path) -> None:
    done = processes.run(ztunnel_command("demo"), env=environment(temporary), timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_story(done.stdout, steps=STEPS)
    assert "application data" in done.stdout
    assert "None of 'GET / HTTP', 'Host: ', 'Hello from the pod web.' is in these packets." in done.stdout
    seconds = re.search(r"That took ([\d.]+) seconds", done.stdout)
    assert seconds is not None
    assert float(seconds[1]) < 30


def wait_for_text(stream: Path, text: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + LIMIT
    while text not in (output := stream.read_text()):
        assert process.poll() is None, output
        assert time.monotonic() < deadline, output
    return output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["2. An ordinary request", "The mesh runs until you press Ctrl-C"])
def test_interrupted_it_cleans_up(temporary: Path, when: str, number: signal.Signals) -> None:
    log = temporary / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ztunnel_command("demo", "--keep"), stdout=output, env=environment(temporary)
        )
    with process:
        wait_for_text(log, when, process)
        (directory,) = temporary.glob(f"{PREFIX}*")
        assert not take_census(directory.name).empty
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert take_census(directory.name).empty
    assert "Interrupted. Everything that was made has been removed." in log.read_text()
    log.unlink()


def test_kept_it_can_be_played_with_by_the_printed_commands(temporary: Path) -> None:
    log = temporary / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ztunnel_command("demo", "--keep"), stdout=output, env=environment(temporary, COLUMNS="200")
        )
    with process:
        wait_for_text(log, "web.log", process)
        printed = log.read_text().partition("The mesh runs until")[2]
        commands = [line.strip() for line in printed.splitlines() if "netns exec" in line]
        outcomes: dict[str, list[subprocess.CompletedProcess[str]]] = {}
        for command in commands:
            pod = re.search(rf"{PREFIX}\w+-(\w+) ", command)
            assert pod is not None
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False, timeout=20)
            outcomes.setdefault(pod[1], []).append(done)
        assert "Hello from the pod web." in outcomes["client"][0].stdout
        assert outcomes["stranger"][0].returncode != 0
        assert "istio_tcp_connections_opened_total" in outcomes["web"][0].stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    log.unlink()


@pytest.fixture
def readable() -> Iterator[dict[str, Path]]:
    """Where an unprivileged user finds this interpreter, our packages and this checkout: in no closed home.

    In a mount namespace of the test's own, in which they are to be mounted: see `in_the_open`.
    """
    with tempfile.TemporaryDirectory(prefix="demo-readable-") as name:
        Path(name).chmod(0o755)
        places = {str(path): Path(name, str(number)) for number, path in enumerate(sources())}
        for place in places.values():
            place.mkdir()
        yield places


def sources() -> list[Path]:
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    return [Path(sys.base_prefix), packages, Path(__file__).parents[2]]


def in_the_open(places: dict[str, Path], arguments: list[str]) -> list[str]:
    """A command that runs our Python as nobody, with everything mounted where nobody may read it."""
    prefix, packages, checkout = places.values()
    mounts = [f"mount --bind {shlex.quote(source)} {place}" for source, place in places.items()]
    program = prefix / Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    paths = [f"PYTHONPATH={checkout}:{packages}", f"LD_LIBRARY_PATH={prefix}/lib"]
    run = shlex.join(["exec", *drop, "env", *paths, str(program), *arguments])
    return ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, run])]


@needs_programs("setpriv", "unshare")
def test_in_an_unprivileged_user_namespace(temporary: Path, readable: dict[str, Path]) -> None:
    done = processes.run(
        in_the_open(readable, ["-m", "ztunnel.cli", "demo"]),
        env=environment(temporary, HOME=str(temporary), PYTHONDONTWRITEBYTECODE="1"),
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_story(done.stdout, steps=STEPS)
    assert "unprivileged user namespace" in done.stdout


@needs_programs("setpriv")
def test_without_any_right_it_falls_back_to_loopback_and_says_so(temporary: Path) -> None:
    # A namespace of the test's own, so that the fixed ports are free whatever runs on this machine.
    namespace = OwnedNamespace.make(f"{PREFIX}loopback-test")
    try:
        with netlink(namespace) as routes:
            routes.link("set", index=routes.link_lookup(ifname="lo")[0], state="up")
        # Root without capabilities may not map its uid into a user namespace.
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        done = processes.run(
            [*drop, *ztunnel_command("demo")], namespace=namespace, env=environment(temporary), timeout=LIMIT
        )
    finally:
        namespace.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "permits neither network namespaces nor unprivileged user namespaces" in " ".join(
        done.stdout.split()
    )
    assert_story(
        done.stdout, steps=["An ordinary request", "What ztunnel logged", "a policy denies", "The metrics"]
    )


def without(backends: str) -> list[str]:
    """The demo on a machine that has no iptables and no nft, but these backends of the redirection."""
    script = (
        "import sys\n"
        "from ztunnel.demo import network\n"
        "network.shutil.which = lambda *_, **__: None\n"
        f"network.BACKENDS = {backends}\n"
        "from ztunnel.demo import main\n"
        "sys.exit(main([]))\n"
    )
    return [sys.executable, "-c", script]


def test_without_iptables_and_nft_the_rules_are_set_by_netlink(temporary: Path) -> None:
    command = without("('iptables', 'nftables', 'netlink')")
    done = processes.run(command, env=environment(temporary), timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_story(done.stdout, steps=STEPS)
    assert "redirection rules (netlink) lead each pod's" in " ".join(done.stdout.split())


def test_on_the_tour_explain_finds_what_broke(temporary: Path) -> None:
    done = processes.run(ztunnel_command("demo", "--tour"), env=environment(temporary), timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    story = " ".join(done.stdout.split())
    _, broken, explained = re.split(r"7\. Something breaks|8\. ztunnel explain says why", story)
    assert "Hello from the pod web." not in broken
    explained, mended = explained.split("9. Mended")
    assert "principals is [cluster.local/ns/default/sa/clients]" in explained
    assert "Hello from the pod web." in mended


def test_the_dashboard_is_reached_from_outside_the_pods(temporary: Path) -> None:
    log = temporary / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ztunnel_command("demo", "--keep"), stdout=output, env=environment(temporary, COLUMNS="200")
        )
    with process:
        printed = wait_for_text(log, "web.log", process)
        address = re.search(r"for a browser on this machine: (http://127\.0\.0\.1:\d+/)", printed)
        assert address is not None
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                with urllib.request.urlopen(address[1], timeout=20) as answer:
                    page = answer.read().decode()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert "/config_dump" in page or 'href="config_dump"' in page
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    log.unlink()


def test_on_a_terminal_there_are_colours_and_a_line_of_progress(temporary: Path) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()
    variables = {**environment(temporary), "TERM": "xterm"}
    variables.pop("NO_COLOR", None)
    with subprocess.Popen(ztunnel_command("demo"), stdout=theirs, env=variables) as process:
        os.close(theirs)
        with suppress(OSError):  # EIO: the other end has closed
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
    assert process.returncode == 0, shown.decode()
    text = shown.decode()
    assert "\033[32mHello from the pod web.\033[0m" in text
    assert "… waiting for the ztunnel of the pod web to be ready\033[0m\r\033[K" in text


def test_where_no_rules_can_be_set_the_pods_use_socks5(temporary: Path) -> None:
    command = without("('iptables', 'nftables')")
    done = processes.run(command, env=environment(temporary), timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_story(done.stdout, steps=STEPS)
    assert "applications ask their ztunnel over SOCKS5" in " ".join(done.stdout.split())


def test_a_ztunnel_that_does_not_start_is_shown_and_cleaned_up(temporary: Path) -> None:
    broken = environment(temporary, PATH="/usr/bin:/bin")
    script = (
        "import sys\n"
        "from ztunnel.demo import dedicated\n"
        "dedicated.ztunnel_command = lambda *_: ['sh', '-c', 'echo out of order; exit 1']\n"
        "from ztunnel.demo import main\n"
        "sys.exit(main([]))\n"
    )
    done = processes.run([sys.executable, "-c", script], env=broken, timeout=LIMIT)
    assert done.returncode == 1
    assert "The demo failed: ztunnel-client ended with status 1" in done.stdout
    assert "out of order" in done.stdout
    assert done.stdout.rstrip().endswith("Everything that was made has been removed.")


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--surprise"], 1)])
def test_arguments(arguments: list[str], status: int) -> None:
    done = processes.run(ztunnel_command("demo", *arguments))
    assert done.returncode == status
    assert "usage: ztunnel demo [--tour] [--keep]" in done.stdout + done.stderr
