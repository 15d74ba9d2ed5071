from __future__ import annotations

import signal
import socket
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from ztunnel import cli
from ztunnel.admin.servers import bind
from ztunnel.config.model import Config, ListenAddress, Localhost
from ztunnel.dataplane.fork_server import ForkServer
from ztunnel.errors import ZtunnelError
from ztunnel.observe.logging import get_logger
from ztunnel.version import build_info, git_revision


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """A stand-in for the program itself; gives the configurations that it was run with."""
    ran: list[Config] = []

    def run(config: Config, probed: list[socket.socket], forks: ForkServer | None = None) -> int:
        assert [sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in probed] == [1]
        assert (forks is not None) == (config.num_worker_threads > 1)
        get_logger("app").info("running")
        ran.append(config)
        if config.network == "broken":
            raise ZtunnelError("the local file cannot be read")
        return 3

    def open_somewhere(name: str, address: ListenAddress, early: socket.socket | None) -> list[socket.socket]:
        assert name == "readiness"
        return bind(name, Localhost(ipv6=False, port=0))

    monkeypatch.setattr(cli, "bind", open_somewhere)
    module: Any = ModuleType("ztunnel.app")
    module.run = run
    monkeypatch.setitem(sys.modules, "ztunnel.app", module)
    return ran


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("argv", [[], ["proxy"], ["proxy", "ztunnel"]])
def test_proxy_is_the_default_and_remembers_its_arguments(argv, workers, app, capfd):
    assert cli.main(argv, {"FAKE_CA": "true", "XDS_ADDRESS": "", "ZTUNNEL_WORKER_THREADS": workers}) == 3
    assert [config.proxy_args for config in app] == [" ".join(argv)]
    out, err = capfd.readouterr()
    assert out.endswith("\tinfo\tapp\trunning\t\n")
    assert err == ""


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"ENABLE_PROXY": "1"},
            "Error: invalid env var ENABLE_PROXY=1 (provided string was not `true` or `false`) (ZT-CFG",
        ),
        ({"RUST_LOG": "a=b"}, "Error: invalid env var RUST_LOG=a=b (a=b is neither a level"),
        ({"NETWORK": "broken"}, "Error: the local file cannot be read (ZT-INT-001)\n"),
    ],
)
def test_errors_go_to_stderr_with_status_1(environ, message, app, capfd):
    assert cli.main([], {"FAKE_CA": "true", "XDS_ADDRESS": "", **environ}) == 1
    assert capfd.readouterr().err.startswith(message)


def test_an_unknown_command_says_so_and_helps(capsys):
    assert cli.main(["run"], {}) == 1
    out, err = capsys.readouterr()
    assert err == "unknown command: run\n"
    assert out == cli.HELP


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_each_command_has_its_own_help(command, flag, app, capsys):
    assert cli.main([command, flag], {}) == 0
    out, err = capsys.readouterr()
    assert (out == cli.HELP) is (command == "help")
    assert "ztunnel" in out
    assert err == ""
    assert app == []
    assert cli.main(["help", command], {}) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "help"])
def test_the_version_is_told_everywhere(command, app, capsys):
    assert cli.main(["--version"], {}) == 0
    said = capsys.readouterr().out
    assert cli.main([command, "--version"], {}) == 0
    assert capsys.readouterr().out == said
    assert said.startswith("version.BuildInfo{")
    assert app == []


def test_an_unknown_command_that_is_nearly_one_gets_the_right_spelling(capsys):
    assert cli.main(["poxy"], {}) == 1
    assert capsys.readouterr().err == "unknown command: poxy; did you mean proxy?\n"


def test_help(capsys):
    assert cli.main(["help"], {}) == 0
    out, err = capsys.readouterr()
    assert out == cli.HELP
    assert err == ""


def test_version_is_printed_as_the_reference_has_it(capsys):
    assert cli.main(["version"], {"ISTIO_META_ISTIO_VERSION": "1.99"}) == 0
    out = capsys.readouterr().out
    assert out.startswith('version.BuildInfo{Version:"')
    for part in ["GitRevision:", "RustVersion:", 'BuildProfile:"', "BuildStatus:", 'IstioVersion:"1.99"']:
        assert part in out
    assert out.endswith('CryptoProvider:"tls-openssl"}\n')


def test_demo_gets_its_arguments(monkeypatch):
    seen: list[Any] = []
    module: Any = ModuleType("ztunnel.demo")
    module.main = seen.append
    monkeypatch.setitem(sys.modules, "ztunnel.demo", module)
    assert cli.main(["demo", "--keep"], {}) == 0
    assert seen == [["--keep"]]


def test_the_view_has_the_keys_of_the_dump():
    assert sorted(build_info("").view()) == [
        "buildProfile",
        "buildStatus",
        "cryptoProvider",
        "gitRevision",
        "istioVersion",
        "rustVersion",
        "version",
    ]
    assert build_info("").view()["istioVersion"] == "unknown"


def test_the_revision_of_a_checkout(tmp_path):
    assert git_revision(tmp_path) == "unknown"
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("abc123\n")
    assert git_revision(tmp_path) == "abc123"
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_revision(tmp_path) == "unknown"
    (git / "packed-refs").write_text("# pack-refs\nfeed refs/heads/main\n")
    assert git_revision(tmp_path) == "feed"
    (git / "refs/heads/main").write_text("beef\n")
    assert git_revision(tmp_path) == "beef"


def test_a_sigterm_before_the_start_is_over_ends_the_process_with_0():
    program = (
        "import os, signal, sys\n"
        "from ztunnel import cli\n"
        "def too_early(*_):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return 7\n"
        "cli._delegate = too_early\n"
        "cli.bind = lambda *_, **__: []\n"
        "sys.exit(cli.main(['proxy'], {'FAKE_CA': 'true', 'XDS_ADDRESS': ''}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 0


def test_an_interrupt_while_modules_are_loaded_shows_no_traceback():
    slow = (
        "import signal, sys, time, importlib.abc\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.startswith('ztunnel.') and name != 'ztunnel.start':\n"
        "            print('loading', flush=True)\n"
        "            time.sleep(30)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "sys.argv[1:] = ['help']\n"
        "from ztunnel.start import main\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    "hang",
    [
        "threading.Thread(target=forever).start()",
        "atexit.register(forever)",
        # As grpcio does when a channel was not closed.
        "globals()['last'] = type('Late', (), {'__del__': lambda self, wait=forever: wait()})()",
    ],
    ids=["a thread", "a callback", "an object"],
)
def test_a_program_whose_interpreter_does_not_end_ends(hang: str):
    program = (
        "import atexit, sys, threading, ztunnel.bounds, ztunnel.cli\n"
        "from ztunnel.bounds import Bounds, ControlBounds\n"
        "ztunnel.bounds.DEFAULTS = Bounds(control=ControlBounds(process_end=0.5))\n"
        "forever = threading.Event().wait\n"
        "def run(early):\n"
        f"    {hang}\n"
        "    return 0\n"
        "ztunnel.cli.main = run\n"
        "from ztunnel.start import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:00.500000)!\n")
    assert "most recent call first" in done.stderr, "where each thread was"


def test_a_program_without_stderr_ends_as_well():
    program = "import sys; sys.argv[1:] = ['version']; from ztunnel.start import main; sys.exit(main())"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"version.BuildInfo")


def test_the_collector_rests_while_modules_are_loaded_and_works_in_a_command():
    program = (
        "import gc, sys\n"
        "from types import ModuleType\n"
        "demo = ModuleType('ztunnel.demo')\n"
        "demo.main = lambda arguments: print('in the command', gc.isenabled())\n"
        "class Look:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'ztunnel.cli':\n"
        "            print('loading', gc.isenabled())\n"
        "            sys.modules['ztunnel.demo'] = demo\n"
        "sys.meta_path.insert(0, Look())\n"
        "sys.argv[1:] = ['demo']\n"
        "from ztunnel.start import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.returncode) == ("loading False\nin the command True\n", 0), done.stderr


def test_the_proxy_loads_no_parser_of_dns_messages_and_no_demo():
    program = "import sys, ztunnel.app; print([name for name in sys.modules if name in sys.argv])"
    unwanted = [
        "dns.message",
        "dns.zone",
        "ztunnel.demo",
        "ztunnel.pb.opentelemetry",
        "unittest",
        "pydoc",
        "pdb",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *unwanted], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
