"""``ztunnel what-if``: which connections a change of policy would cut, refuse or allow."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from ztunnel.decide.plans import PolicyFacts
from ztunnel.errors import ZtunnelError
from ztunnel.explain.kubernetes import Converted, PolicyFileError, read_policies
from ztunnel.explain.name_lookup import UnclearError, find_source
from ztunnel.explain.policy_change import Change, DecidedConnection, PolicyChange
from ztunnel.explain.saved_dump import DumpError, SavedMesh, read_dump
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity, InvalidIdentityError
from ztunnel.model.workload import Workload
from ztunnel.slices import at_once
from ztunnel.tools.ask import ADMIN, REFUSED, AskError, decode, fail, get, read_file

_EPILOG = """\
exit status: 0 nothing would be cut or refused, 1 something would, 2 the question could not be answered.

examples:
  ztunnel what-if -f policy.yaml
  ztunnel what-if -f policies/ --without shop/allow-web
  ztunnel what-if -f policy.yaml --dump node-a.json --dump node-b.json
"""
_NO_HISTORY = "A dump has no connections that have ended; a running ztunnel remembers them."


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = argparse.ArgumentParser(
        prog="ztunnel what-if",
        description="Tells which open connections a change of policy would cut, and which of the remembered "
        "ones it would have refused or allowed, and by which clause. Policies are Kubernetes "
        "AuthorizationPolicy and PeerAuthentication objects, as one writes them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "-f", "--file", action="append", default=[], help="YAML, a directory of it, or - (repeatable)"
    )
    made.add_argument(
        "--without", action="append", default=[], metavar="NS/NAME", help="as if it were not there"
    )
    made.add_argument(
        "--dump", action="append", default=[], metavar="FILE", help="a node's config dump (repeatable)"
    )
    made.add_argument("--admin", metavar="URL", default=ADMIN, help=f"a running ztunnel (default: {ADMIN})")
    made.add_argument("--root-namespace", default="istio-system", help="whose policies apply everywhere")
    made.add_argument("--json", action="store_true", help="for programs")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser()
    args = options.parse_args(list(arguments))
    if not (args.file or args.without):
        options.error("-f or --without is needed")
    try:
        changed = [one for path in args.file for one in _policies(path, args.root_namespace)]
        nodes = [_dumped(path) for path in args.dump] or [_live(args.admin)]
    except ZtunnelError as error:
        return fail(error)
    notes: dict[str, None] = {}
    changes: list[Change] = []
    looked_at: Counter[bool] = Counter()
    for mesh, connections, unclear in nodes:
        notes.update(dict.fromkeys(unclear))
        change = PolicyChange(mesh.store, changed, args.without, args.root_namespace)
        changes += change.effects(connections)
        looked_at.update(one.open for one in connections)
        notes.update(dict.fromkeys(change.notes))
    if args.json:
        answer = {
            "changes": changes,
            "notes": list(notes),
            "open": looked_at[True],
            "remembered": looked_at[False],
        }
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(answer), indent=2) + b"\n")
    else:
        if args.dump:
            notes[_NO_HISTORY] = None
        sys.stdout.write("\n".join(_lines(changes, notes, looked_at)) + "\n")
    return REFUSED if any(one.effect != "allowed" for one in changes) else 0


def _policies(path: str, root: str) -> list[Converted]:
    """Returns what `_read` does. Raises PolicyFileError if that is nothing, as at a wrong path."""
    found = _read(path, root)
    if not found:
        raise PolicyFileError(f"{path} has no AuthorizationPolicy and no PeerAuthentication.")
    return found


def _read(path: str, root: str) -> list[Converted]:
    """Returns the policies in a file, a directory, or standard input."""
    if path != "-" and Path(path).is_dir():
        files = sorted(one for one in Path(path).rglob("*") if one.suffix in (".yaml", ".yml", ".json"))
        return [policy for one in files for policy in _read(str(one), root)]
    return read_policies(read_file(path).decode("utf-8", "replace"), root, path)


def _lines(changes: list[Change], notes: Mapping[str, None], looked_at: Mapping[bool, int]) -> Iterator[str]:
    words = {
        "cut": "would be cut",
        "refused": "would have been refused",
        "allowed": "would have been allowed",
    }
    for effect, title in words.items():
        chosen = [one for one in changes if one.effect == effect]
        if chosen:
            yield f"{len(chosen)} {title}:"
            for one in chosen:
                whom = one.identity or "no identity"
                yield f"  {one.client} ({whom}) → {one.pod} {one.destination}  connection {one.connection}"
                yield f"      {one.policy + ': ' if one.policy else ''}{one.why}"
    for note in notes:
        yield f"note: {note}"
    yield (
        f"=> Of {looked_at[True]} open and {looked_at[False]} remembered connections, "
        + ", ".join(
            f"{sum(one.effect == effect for one in changes)} {title}" for effect, title in words.items()
        )
        + "."
    )


# -- where connections come from -------------------------------------------------------------------------


def _live(admin: str) -> tuple[SavedMesh, list[DecidedConnection], list[str]]:
    """Returns the mesh of a running node, and its incoming connections, open and closed."""
    dump = get(admin, "/config_dump", {})
    found = get(admin, "/connections", {"limit": "20000"})
    for answer in (dump, found):
        if answer.status != 200:
            raise AskError(f"{admin} answers {answer.status}: {answer.body[:200].decode(errors='replace')}")
    mesh = read_dump(dump.body)
    listed = decode(found, admin, "/connections", list[dict[str, Any]])
    views = [one for one in listed if one["direction"] == "inbound"]
    return mesh, [one for view in views if (one := _from_view(mesh, view)) is not None], []


def _from_view(mesh: SavedMesh, view: Mapping[str, Any]) -> DecidedConnection | None:
    if not view.get("protocol"):
        return None  # it has not asked for anything yet
    pod = _pod(mesh, view["pod"])
    if pod is None or (view.get("error") and view.get("code") not in ("ZT-POL-001", "ZT-POL-002")):
        return None
    identity = _identity(view.get("peerIdentity", ""))
    facts = PolicyFacts(
        SocketAddress.parse(view["client"]), SocketAddress.parse(view["destination"]), identity
    )
    return DecidedConnection(view["id"], pod, facts, view["state"] == "open", view["ageSeconds"])


def _dumped(path: str) -> tuple[SavedMesh, list[DecidedConnection], list[str]]:
    """Returns the mesh of a dump, its open incoming connections, and remarks on what the dump lacks."""
    mesh = read_dump(read_file(path))
    connections: list[DecidedConnection] = []
    strangers = unnamed = 0
    state = mesh.dump.get("workloadState")
    for uid, one in state.items() if isinstance(state, Mapping) else ():
        try:
            info = one["info"]
            pod = _pod(mesh, f"{info['namespace']}/{info['name']}")
            inbound = (one.get("connections") or {}).get("inbound") or ()
            if pod is None:
                strangers += len(inbound)
                continue
            for number, shown in enumerate(inbound):
                source = SocketAddress.parse(shown["src"])
                identity = _identity_at(mesh, source) if shown["protocol"] == "HBONE" else None
                if shown["protocol"] == "HBONE" and identity is None:
                    unnamed += 1
                    continue
                facts = PolicyFacts(source, SocketAddress.parse(shown["actualDst"]), identity)
                connections.append(DecidedConnection(f"{uid[:8]}-{number}", pod, facts, open=True))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DumpError(f"The dump cannot be read: workloadState.{uid}: {error!r}") from error
    notes = []
    if state is None:
        notes.append(f"{path} has no connections: a ztunnel in dedicated mode dumps none.")
    if strangers:
        notes.append(f"{path} has {strangers} connections of pods that it does not describe; left out.")
    if unnamed:
        notes.append(f"{path} has {unnamed} connections whose clients it does not describe; left out.")
    return mesh, connections, notes


@cache
def _pod(mesh: SavedMesh, name: str) -> Workload | None:
    try:
        return at_once(find_source(mesh.catalogue, name, mesh.setting.network))
    except UnclearError:
        return None


def _identity(text: str) -> Identity | None:
    try:
        return Identity.parse(text)
    except InvalidIdentityError:
        return None


def _identity_at(mesh: SavedMesh, address: SocketAddress) -> Identity | None:
    """Returns the identity of the workload at an address, because a dump has no identities of peers."""
    found = mesh.store.workload_by_address(mesh.setting.network, address.ip)
    return None if found is None else found.identity
