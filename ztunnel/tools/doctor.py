"""``ztunnel doctor``: checks for common problems of a node, one line for each, with advice."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ztunnel.config.config_errors import ConfigError
from ztunnel.config.load_from_machine import load_from_machine
from ztunnel.config.model import Config
from ztunnel.config.parse_values import host_and_port
from ztunnel.tools.ask import ADMIN, AskError, decode, get
from ztunnel.tools.findings import Finding, exit_status, failure, lines, ok, skipped, warning
from ztunnel.tools.machine_checks import (
    capabilities,
    conntrack,
    descriptors,
    mtu,
    namespaces,
    ports,
    tls_records,
)
from ztunnel.tools.network_checks import names, peer, root, server, token

_EPILOG = """\
Run it where ztunnel runs, for it reads the same environment:
  kubectl -n istio-system exec ds/ztunnel -- ztunnel doctor --peer 10.0.1.7

exit status: 0 nothing fails, 1 something does.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = argparse.ArgumentParser(
        prog="ztunnel doctor",
        description="Checks what usually goes wrong on a node: capabilities, namespaces, ports, token and "
        "root certificate, istiod and the CA and who signed them, clocks, descriptors, conntrack, MTU, "
        "DNS, the certificates of the running ztunnel, and peers' HBONE ports.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--peer", action="append", default=[], metavar="IP[:PORT]", help="a pod to reach (repeatable)"
    )
    made.add_argument("--admin", metavar="URL", default=ADMIN, help=f"the running ztunnel (default: {ADMIN})")
    made.add_argument("--json", action="store_true", help="for programs")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status."""
    args = parser().parse_args(list(arguments))
    findings = list(examine(os.environ, args.admin, args.peer))
    if args.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(findings), indent=2) + b"\n")
    else:
        sys.stdout.write("\n".join(lines(findings)) + "\n")
    return exit_status(findings)


def examine(environ: Mapping[str, str], admin: str, peers: Sequence[str]) -> Iterator[Finding]:
    """Returns all findings. The checks run one after the other and limit their own waits."""
    try:
        config = load_from_machine(environ)
    except ConfigError as error:
        yield failure(
            "configuration", f"{error} ({error.code})", "correct it: ztunnel does not start with this"
        )
        config = Config()
    else:
        yield from _configuration(config)
    running = True
    try:
        yield from _running(admin)
    except AskError:
        running = False
        yield skipped("ztunnel", f"none answers at {admin}")
    yield from tls_records(config)
    yield from capabilities(config)
    yield from namespaces(config)
    yield from ports(config, running=running)
    yield from descriptors()
    yield from conntrack()
    yield from mtu()
    yield from token(config)
    servers = [one for one in (config.xds_address, config.ca_address) if one is not None]
    yield from names([host_and_port(one)[0] for one in servers])
    if config.xds_address is not None:
        yield from root("istiod", config.xds_root_cert)
    yield from server("istiod", config.xds_address, config.xds_root_cert, config.alt_xds_hostname)
    if config.ca_address is not None:
        yield from root("CA", config.ca_root_cert)
    yield from server("CA", config.ca_address, config.ca_root_cert, config.alt_ca_hostname)
    for one in peers:
        yield from peer(one)
    if not peers:
        yield skipped("peer", "none was named (--peer IP)")


def _configuration(config: Config) -> Iterator[Finding]:
    for one in config.warnings:
        yield warning("configuration", one, "see docs/configuration.md")
    if not config.warnings:
        yield ok("configuration", f"{config.proxy_mode.value.lower()} mode, nothing odd in the environment")


def _running(admin: str) -> Iterator[Finding]:
    """Returns the state of the running ztunnel's certificates. Raises AskError when none runs."""
    answer = get(admin, "/debug/certificates", {})
    if answer.status != 200:
        yield skipped("ztunnel", f"What answers at {admin} does not know /debug/certificates")
        return
    try:
        certificates = decode(answer, admin, "/debug/certificates", list[dict[str, Any]])
    except AskError as error:
        yield skipped("ztunnel", str(error))
        return
    bad = 0
    for one in certificates:
        left = one.get("expiresInSeconds")
        if left is not None and left < 0:
            bad += 1
            yield failure(
                "certificates",
                f"that of {one['identity']} expired {-left / 60:.0f} minutes ago: {one['lastError'] or '?'}",
                "see the CA below; clocks; docs/errors.md for the code",
            )
        elif one.get("lastError"):
            bad += 1
            yield warning(
                "certificates",
                f"that of {one['identity']} cannot be renewed: {one['lastError']} ({one['lastErrorCode']})",
                "see the CA below, and docs/errors.md for the code",
            )
    if not bad:
        yield ok("certificates", f"{len(certificates)}, none expired, none that cannot be renewed")
