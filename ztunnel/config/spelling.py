"""Finds typing errors that would silently change behaviour, and the name that was probably meant. Pure.

An unknown variable or word is not an error, because other programs have variables too, and the Rust ztunnel
ignores them. So it becomes a warning with the right spelling.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import SequenceMatcher

_OURS = "ZTUNNEL_"
_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""The ends of the variables that Kubernetes sets for its API server and for each Service of the namespace
(https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
"""

_SURE = 0.87
"""The similarity of two names (`SequenceMatcher.ratio`) from which on one counts as a misspelling."""

_FOREIGN = frozenset(
    {"INSTANCE_IPS", "INPOD_ENABLED", "ISTIO_META_ENABLE_HBONE", "ZTUNNEL_IDENTITY", "FAKE_SELF_INBOUND"}
)
"""Variables that manifests for the Rust ztunnel set, and that have no effect here."""


def nearest(word: str, known: Iterable[str], sure: float = _SURE) -> str | None:
    """Returns the known word that was probably meant, None when none is similar.

    Case, ``-`` and ``_`` are ignored. ``sure``: the similarity, from 0 (anything) to 1 (the same).
    """
    wanted = _folded(word)
    best, score = None, 0.0
    for candidate in sorted(known):
        ratio = SequenceMatcher(None, wanted, _folded(candidate), autojunk=False).ratio()
        if ratio > score:
            best, score = candidate, ratio
    return best if score >= sure else None


def _folded(word: str) -> str:
    return word.casefold().replace("-", "_")


def variable_warnings(names: Collection[str], known: Collection[str], prefixes: Collection[str]) -> list[str]:
    """Returns a warning for each variable that is nearly one of ours, or has our prefix and is none.

    names: of the environment. known: those that were read. prefixes: of families of names, all of which are
    read (``ISTIO_META_``, for the control plane).
    """
    warnings = []
    for name in sorted(names):
        if name in known or name in _FOREIGN:
            continue
        family = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if family is not None:
            warnings += _in_family(name, family, known)
            continue
        meant = nearest(name, known)
        if name.startswith(_OURS):
            if _SERVICE_LINK.fullmatch(name.removeprefix(_OURS.rstrip("_"))):
                continue
            ours = (one.removeprefix(_OURS) for one in known if one.startswith(_OURS))
            nearly = None if meant else nearest(name.removeprefix(_OURS), ours, 0.6)
            meant = f"{_OURS}{nearly}" if nearly else meant
            hint = f"did you mean {meant}?" if meant else "no variable of ours is like it."
            warnings.append(f"unknown variable {name}: it changes nothing; {hint}")
        elif meant is not None and not _is_service_link(name, names):
            warnings.append(f"unknown variable {name}: it changes nothing; did you mean {meant}?")
    return warnings


def _in_family(name: str, prefix: str, known: Iterable[str]) -> list[str]:
    """Returns a warning if a name is nearly one of its family that means more than its others."""
    special = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
    meant = nearest(name.removeprefix(prefix), special)
    return [] if meant is None else [f"{name} changes nothing here; did you mean {prefix}{meant}?"]


def _is_service_link(name: str, names: Collection[str]) -> bool:
    """Whether Kubernetes set the variable: then the Service's address is there too."""
    link = _SERVICE_LINK.search(name)
    return link is not None and f"{name[: link.start()]}_SERVICE_HOST" in names


def switch_warning(name: str, value: str | None) -> str | None:
    """Returns a warning when a switch that only the text ``true`` turns on has an unclear value."""
    if value is None or value in ("true", "false", ""):
        return None
    truthy = value.strip().casefold() in ("true", "1", "yes", "on", "y", "t", "enabled")
    hint = f"write {name}=true to switch it on" if truthy else "expected `true` or `false`"
    return f"{name}={value[:200]} counts as false: {hint}"


def word_warning(name: str, value: str | None, known: Mapping[str, str]) -> str | None:
    """Returns a warning for a variable whose value is none of the words that mean something.

    known: the words, and what happens with each; that of the empty word happens with all others.
    """
    if value is None or value in known:
        return None
    words = sorted(word for word in known if word)
    meant = nearest(value, words, 0.6)
    hint = f"did you mean {meant}?" if meant else f"known are {', '.join(words)}."
    return f"{name}={value[:200]} is unknown, so {known['']}; {hint}"
