"""The mesh for workers that start late: all resources in force, in a file in memory.

Each worker has its own mesh. The control side keeps the bytes of the resources, so that a new worker gets
them without a request to the control plane. Changes and removals are appended to a memfd as they come into
force; when half of the file may be out of date, it is written again with what is still in force. So it takes
at most twice the size of the resources, outside of Python's heap, and nothing for each object.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind

CACHE_PART = 2000
"""Resources in one delta that is made from the cache."""

_HEADER = struct.Struct("<BBHi")  # kind, origin, length of the name, length of the body or -1 for a removal
_KINDS = tuple(ResourceKind)
_ORIGINS = tuple(Origin)
_REMOVED = -1


class MeshCache:
    """The file. `close` it at the end.

    slack: bytes of replaced resources that the file may have, in addition to as many as are in force.
    """

    def __init__(self, slack: int) -> None:
        self._slack = slack
        self._file = os.memfd_create("mesh", os.MFD_CLOEXEC)
        self._size = 0
        self._compact_at = slack

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self._size

    def record(self, delta: MeshDelta, rejected: frozenset[str]) -> None:
        """A delta was applied, except for the resources with these names."""
        head = _KINDS.index(delta.kind), _ORIGINS.index(delta.origin)
        records = [
            _record(head, resource.name, resource.body)
            for resource in delta.resources
            if resource.name not in rejected
        ]
        records += [_record(head, name, None) for name in delta.removed]
        self._append(b"".join(records))
        if self._size > self._compact_at:
            self._compact()

    def deltas(self) -> Iterator[MeshDelta]:
        """Returns the resources in force as deltas without numbers. The cache must not change meanwhile."""
        parts: dict[tuple[int, int], list[Resource]] = {}
        with self._mapped() as data:
            for (kind, origin, name), (start, end) in self._in_force(data).items():
                part = parts.setdefault((kind, origin), [])
                part.append(Resource(name, data[start:end]))
                if len(part) == CACHE_PART:
                    yield _delta(kind, origin, part)
                    del parts[kind, origin]
        for (kind, origin), part in parts.items():
            yield _delta(kind, origin, part)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, self._size)
            self._size += written
            view = view[written:]

    def _mapped(self) -> mmap.mmap:
        # An empty file cannot be mapped.
        if self._size == 0:
            return mmap.mmap(-1, mmap.PAGESIZE)
        return mmap.mmap(self._file, self._size, prot=mmap.PROT_READ)

    def _in_force(self, data: mmap.mmap) -> dict[tuple[int, int, str], tuple[int, int]]:
        """Returns the positions of the bodies that were neither replaced nor removed."""
        found: dict[tuple[int, int, str], tuple[int, int]] = {}
        at = 0
        while at < self._size:
            kind, origin, name_length, length = _HEADER.unpack_from(data, at)
            body = at + _HEADER.size + name_length
            key = kind, origin, data[at + _HEADER.size : body].decode()
            if length == _REMOVED:
                found.pop(key, None)
                at = body
            else:
                at = body + length
                found[key] = body, at
        return found

    def _compact(self) -> None:
        with self._mapped() as data:
            kept = [
                _record((kind, origin), name, data[start:end])
                for (kind, origin, name), (start, end) in self._in_force(data).items()
            ]
        self._size = 0
        self._append(b"".join(kept))
        os.ftruncate(self._file, self._size)
        self._compact_at = 2 * self._size + self._slack


def _record(head: tuple[int, int], name: str, body: bytes | None) -> bytes:
    encoded = name.encode()
    length = _REMOVED if body is None else len(body)
    return _HEADER.pack(*head, len(encoded), length) + encoded + (body or b"")


def _delta(kind: int, origin: int, part: list[Resource]) -> MeshDelta:
    return MeshDelta(0, _KINDS[kind], tuple(part), (), _ORIGINS[origin])
