"""The resources of a response, which stay in the bytes of the message until a caller takes them.

Otherwise a full push of 100,000 pods would be in memory three times: as the message, as objects made from it,
and as the old objects in the store. Here a resource is made when it is taken and at once replaces the old one
in the store, mostly in the memory that the old one frees. So memory hardly grows (measured in
docs/measurements/scale.md).

The store and the session both keep the name of each object. A new name is kept here from the first time it is
taken, so that both keep the same string object; they already share known names.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Sequence
from typing import TypeAlias, overload

from ztunnel.messages import Resource

Span: TypeAlias = tuple[int, int]
"""A position in the message where something begins, and the position after its end."""

_SPANS = 6


class ScannedResources(Sequence[Resource]):
    """A sequence of the resources that count: all of them, or those whose numbers are in ``chosen``.

    known: the names that the session already keeps. total: the number of all resources, chosen or not; `name`
        and `version` use this numbering.
    """

    __slots__ = ("_message", "_new_names", "_spans", "chosen", "known")

    def __init__(self, message: bytes) -> None:
        self._message = message
        # For each resource the begin and end of its name, version and payload. Four bytes each are enough:
        # the bridge takes no message of more than 200 MiB.
        self._spans: array[int] = array("I")
        self._new_names: dict[int, str] = {}
        self.known: Container[str] = ()
        self.chosen: array[int] | None = None

    def add(self, name: Span, version: Span, body: Span) -> None:
        """Add a resource that was found."""
        self._spans.extend((*name, *version, *body))

    @property
    def total(self) -> int:
        """How many resources the message has."""
        return len(self._spans) // _SPANS

    def name(self, number: int) -> str:
        """Returns the name of a resource."""
        name = self._new_names.get(number)
        if name is None:
            at = number * _SPANS
            name = self._message[self._spans[at] : self._spans[at + 1]].decode()
        return name

    def version(self, number: int) -> str:
        """Returns the version of a resource."""
        at = number * _SPANS
        return self._message[self._spans[at + 2] : self._spans[at + 3]].decode()

    def names(self) -> Iterator[str]:
        """Returns the names of all resources, in order."""
        return map(self.name, range(self.total))

    def __len__(self) -> int:
        return self.total if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Resource: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Resource]: ...
    def __getitem__(self, index: int | slice) -> Resource | Sequence[Resource]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            if not 0 <= index + len(self) < len(self):
                raise IndexError(index)
            index += len(self)
        number = index if self.chosen is None else self.chosen[index]
        name = self._new_names.get(number)
        spans, at = self._spans, number * _SPANS
        if name is None:
            name = self._message[spans[at] : spans[at + 1]].decode()
            if name not in self.known:
                self._new_names[number] = name
        return Resource(name, self._message[spans[at + 4] : spans[at + 5]])
