"""A network namespace handle that counts how often it was closed."""

from __future__ import annotations


class FakeNamespace:
    """Stands for a descriptor; ``open`` lists those that nobody has closed."""

    def __init__(self, identity: int, open_handles: set[FakeNamespace] | None = None) -> None:
        self._identity = identity
        self._open = open_handles
        if open_handles is not None:
            open_handles.add(self)

    @property
    def identity(self) -> int:
        return self._identity

    @property
    def descriptor(self) -> int:
        return 1000 + self._identity

    def close(self) -> None:
        if self._open is not None:
            self._open.remove(self)  # a second close raises KeyError
