"""Values of the local mesh file (LOCAL_XDS_PATH) that plain YAML does not have: tagged string matches."""

from __future__ import annotations

from typing import Any

import yaml


class Exact(str):
    """Matches this text."""

    __slots__ = ()


class Prefix(str):
    """Matches texts that begin with this."""

    __slots__ = ()


class Suffix(str):
    """Matches texts that end with this."""

    __slots__ = ()


class Presence:
    """Matches any text but the empty one."""


class _Dumper(yaml.SafeDumper):
    pass


for _kind in (Exact, Prefix, Suffix):
    _Dumper.add_representer(
        _kind, lambda dumper, value: dumper.represent_scalar(f"!{type(value).__name__}", str(value))
    )
_Dumper.add_representer(Presence, lambda dumper, value: dumper.represent_sequence("!Presence", []))


def to_yaml(value: Any) -> str:
    """Returns the text of a local mesh file."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=200)
    return text
