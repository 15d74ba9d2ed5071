"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

They are processes in the first node's network namespace. There they reach the services' addresses, as the
API server must to call istiod's webhooks.
"""

import signal
from pathlib import Path

from tests.cluster import programs
from tests.cluster.pki import Authority
from tests.cluster.places import Places
from tests.cluster.shell import Daemon, run, until
from tests.cluster.topology import API_SERVER, API_SERVICE, NODES, PODS, SERVICES

_ORDER = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_ISSUER = "https://kubernetes.default.svc.cluster.local"


def issue(places: Places) -> None:
    """Certificates and kubeconfig files of everybody, once in the life of a cluster."""
    if (places.state / "admin.conf").exists():
        return
    authority = Authority(places.state / "pki")
    here = NODES[0].ip
    names = (
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    )
    authority.issue("apiserver", "kube-apiserver", dns=names, ips=("127.0.0.1", API_SERVICE, here))
    people = {
        "controller-manager": ("system:kube-controller-manager", None),
        "scheduler": ("system:kube-scheduler", None),
        "proxy": ("system:kube-proxy", None),
        **{node.name: (f"system:node:{node.name}", "system:nodes") for node in NODES},
        "admin": ("admin", "system:masters"),
    }
    addresses = {node.name: node.ip for node in NODES}
    for file, (name, group) in people.items():
        node_ip = (addresses[file],) if file in addresses else ()
        authority.issue(file, name, group, dns=(file,) if node_ip else (), ips=node_ip)
        authority.kubeconfig(file, API_SERVER, places.state / f"{file}.conf")


def start(places: Places) -> None:
    """Starts what does not run, and returns when the API server says that it is ready."""
    pki, here = places.state / "pki", NODES[0]
    commands: dict[str, list[str]] = {
        "etcd": [
            f"--data-dir={places.state}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        "kube-apiserver": [
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={here.ip}",
            "--bind-address=0.0.0.0",
            "--secure-port=6443",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/admin.crt",
            f"--kubelet-client-key={pki}/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            f"--service-account-issuer={_ISSUER}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=lease",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={places.state}/controller-manager.conf",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--cluster-cidr={PODS}",
            "--allocate-node-cidrs=true",
            f"--service-cluster-ip-range={SERVICES}",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
        ],
        "kube-scheduler": [f"--kubeconfig={places.state}/scheduler.conf", "--leader-elect=false"],
    }
    for name in _ORDER:
        daemon = _daemon(name, places)
        program = programs.program(name).path(places)
        daemon.start(
            ["nsenter", f"--net=/run/netns/{here.netns}", program, *commands[name]],
            _log(name, places),
            cwd=places.state,
        )
        if name == "kube-apiserver":

            def ready(daemon: Daemon = daemon) -> bool:
                if daemon.pid() is None:
                    raise RuntimeError(
                        f"kube-apiserver ended:\n{_log('kube-apiserver', places).read_text()[-2000:]}"
                    )
                return (
                    run(
                        "kubectl",
                        "--kubeconfig",
                        places.state / "admin.conf",
                        "get",
                        "--raw",
                        "/readyz",
                        check=False,
                    )
                    == "ok"
                )

            until("the API server is ready", 120, ready)


def stop(places: Places) -> None:
    """Ends them, last started first."""
    for name in reversed(_ORDER):
        _daemon(name, places).stop(
            signal.SIGTERM if name != "kube-apiserver" else signal.SIGKILL, patience=10
        )


def _daemon(name: str, places: Places) -> Daemon:
    return Daemon(places.state / f"{name}.pid")


def _log(name: str, places: Places) -> Path:
    return places.state / "log" / f"{name}.log"
