"""The nodes, seen from the host: their links, their start and end, programs run inside them."""

import signal
import sys
from pathlib import Path

from tests.cluster.node_init import CONTROLLERS
from tests.cluster.places import CHECKOUT, Places
from tests.cluster.shell import Daemon, run, until
from tests.cluster.topology import BRIDGE, HOST, NODES, Node


def connect() -> None:
    """A bridge on the host, a network namespace linked to it for each node, routes to the pods of each."""
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{HOST}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
    for node in NODES:
        if Path(f"/run/netns/{node.netns}").exists():
            continue
        run("ip", "netns", "add", node.netns)
        run("ip", "link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", node.netns)
        run("ip", "link", "set", node.link, "master", BRIDGE, "up")
        inside = ("ip", "-n", node.netns)
        run(*inside, "address", "add", f"{node.ip}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "route", "add", "default", "via", HOST)
        for other in NODES:
            if other != node:
                run(*inside, "route", "add", other.pods, "via", other.ip)
        run("ip", "route", "replace", node.pods, "via", node.ip)


def start(node: Node, places: Places) -> None:
    """Starts the node's process 1, and returns when containerd answers."""
    home = places.state / node.name
    home.mkdir(parents=True, exist_ok=True)
    daemon = _daemon(node, places)
    if daemon.pid() is None:
        (home / "up").unlink(missing_ok=True)
        daemon.start(
            [
                "nsenter",
                f"--net=/run/netns/{node.netns}",
                "unshare",
                "--mount",
                "--pid",
                "--uts",
                "--ipc",
                "--fork",
                "--mount-proc",
                "--kill-child",
                sys.executable,
                "-m",
                "tests.cluster.node_init",
                node.name,
                places.cache,
            ],
            home / "init.log",
            cwd=CHECKOUT,
        )

    def up() -> bool:
        if daemon.pid() is None:
            raise RuntimeError(f"{node.name} did not start:\n{(home / 'init.log').read_text()[-2000:]}")
        return (home / "up").exists()

    until(f"{node.name} is up", 90, up)


def init_pid(node: Node, places: Places) -> int | None:
    """The host's number of the node's process 1, or None when the node does not run."""
    parent = _daemon(node, places).pid()
    if parent is None:
        return None
    children = run("pgrep", "-P", str(parent), check=False).split()
    return int(children[0]) if children else None


def inside(node: Node, places: Places, *command: str | Path) -> list[str]:
    """The command line that runs `command` in all of the node's namespaces.

    Raises LookupError when the node does not run.
    """
    pid = init_pid(node, places)
    if pid is None:
        raise LookupError(f"{node.name} does not run")
    return ["nsenter", "-t", str(pid), "-m", "-p", "-n", "-u", "-i", *(str(each) for each in command)]


def stop(node: Node, places: Places) -> None:
    """Ends everything in the node, and removes its link, its network namespace and its cgroups."""
    _daemon(node, places).stop(
        signal.SIGKILL, patience=30
    )  # --kill-child: process 1 goes with it, and with that the rest
    if Path(f"/sys/class/net/{node.link}").exists():
        run("ip", "link", "delete", node.link)
    if Path(f"/run/netns/{node.netns}").exists():
        run("ip", "netns", "delete", node.netns)
    until(f"the cgroups of {node.name} are gone", 30, lambda: _remove_cgroups(node))


def disconnect() -> None:
    """Removes the bridge and with it the host's routes to pods."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "delete", BRIDGE)


def _daemon(node: Node, places: Places) -> Daemon:
    return Daemon(places.state / node.name / "unshare.pid")


def _remove_cgroups(node: Node) -> bool:
    """Whether none is left."""
    whole = True
    for controller in (*CONTROLLERS, "unified", ""):  # the last: version 2
        root = Path("/sys/fs/cgroup") / controller / node.cgroup
        if not root.is_dir():
            continue
        below = sorted((path for path in root.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for directory in (*below, root):
            try:
                directory.rmdir()
            except OSError:  # its last process is still ending
                whole = False
    return whole
