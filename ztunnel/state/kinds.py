"""How one value goes between its forms: on the wire, in the model, and in the dump and the local file.

A `Kind` is three functions and a default. Simple kinds are written out in `ztunnel.state.values`; `Record`
makes one out of the description of a message's fields, so messages nest as kinds do. The descriptions
themselves are in `ztunnel.state.description`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from ztunnel.state.local_reader import listed, mapping, problem, text, variant
from ztunnel.state.wire import enumeration_numbers

Json: TypeAlias = Any


class RejectedError(ValueError):
    """A resource is refused; ``str()`` is the reason for the NACK.

    ``undecodable``: the bytes are no message at all; such reasons come last in a NACK.
    """

    def __init__(self, reason: str, *, undecodable: bool = False) -> None:
        super().__init__(reason)
        self.undecodable = undecodable


def same(value: Any) -> Any:
    """Returns the value itself, where two forms are one."""
    return value


class Kind(NamedTuple):
    """What a field holds.

    parse: from the file's value and its place to the model's value. Raises LocalConfigError.
    read: from the value of a protobuf message to the model's. Raises RejectedError.
    show: from the model's value to what JSON can hold, which ``parse`` takes.
    display: from the value of a protobuf message to JSON, where the way through the model is a detour.
    default: the model's value where the field is absent.
    message: it is a message that can be absent on the wire.
    numbers: the only ones that an enumeration takes, if it is one that refuses others.
    """

    parse: Callable[[Any, str], Any]
    read: Callable[[Any], Any] = same
    show: Callable[[Any], Json] = same
    display: Callable[[Any], Json] | None = None
    default: Any = None
    message: bool = False
    numbers: frozenset[int] | None = None


TEXT = Kind(text, default="")


def many(kind: Kind) -> Kind:
    """Returns the kind of a repeated field: a tuple in the model, a list elsewhere."""
    read, show, display = kind.read, kind.show, kind.display
    return Kind(
        parse=listed(kind.parse),
        read=tuple if read is same else lambda values: tuple([read(value) for value in values]),
        show=list if show is same else lambda values: [show(value) for value in values],
        display=None if display is None else lambda values: [display(value) for value in values],
        default=(),
    )


def enumeration(names: type[Enum], wire: str, *, unknown: Enum | None = None, **others: Any) -> Kind:
    """Returns an enumeration of the model, by its name in the .proto.

    Names that are the same in both go together; ``others`` says what else a name of the .proto stands for:
    None for an absent value, a text for the reason why it is refused. unknown: what a number stands for that
    the .proto does not have, None if it is refused too.
    """
    numbers: dict[int, Any] = {
        number: others[name] if name in others else names[name]
        for name, number in enumeration_numbers(wire).items()
        if name in others or name in names.__members__
    }
    taken = {number: name for number, name in numbers.items() if not isinstance(name, str)}

    def read(number: int) -> Any:
        try:
            return taken[number]
        except KeyError:
            if unknown is not None:
                return unknown
            signed = number - (number >> 31 << 32)
            reason = numbers.get(number, f"decode error: unknown enumeration value {signed}")
            raise RejectedError(reason) from None

    return Kind(
        parse=variant(names),
        read=read,
        show=lambda value: value and value.value,
        default=taken.get(0),
        numbers=frozenset(taken) if unknown is None else None,
    )


class Field(NamedTuple):
    """One field of a message.

    name: in the model.
    kind: what it holds.
    wire: its name in the .proto, if that is another.
    json: its name in the dump and the file, if that is not the camel case of the name.
    default: for one that is absent, if it is not the kind's. If that is None too, the file may say null.
    xds_default: for one that the control plane left empty, if that is yet another.
    always: it is in the dump also when it is empty.
    required: the file must have it.
    """

    name: str
    kind: Kind
    wire: str = ""
    json: str = ""
    default: Any = None
    xds_default: Any = None
    always: bool = False
    required: bool = False

    @property
    def empty(self) -> Any:
        """The model's value where the field is absent."""
        return self.kind.default if self.default is None else self.default

    @property
    def wire_name(self) -> str:
        """The name in the .proto."""
        return self.wire or self.name

    @property
    def read(self) -> Callable[[Any], Any]:
        """From the value of a message to the model's."""
        default = self.xds_default
        return self.kind.read if default is None else lambda value: value or default

    @property
    def absent(self) -> Json:
        """What the dump shows where the field is absent."""
        return self.kind.show(self.empty) if self.always and self.kind.message else None

    @property
    def display(self) -> Callable[[Any], Json]:
        """From the value of a message to what the dump shows, None for nothing."""
        if self.kind.display is not None:
            return self.kind.display
        read, show, empty, always = self.read, self.kind.show, self.empty, self.always

        def display(value: Any) -> Json:
            one = read(value)
            return show(one) if always or (one and one != empty) else None

        return display

    @property
    def shown(self) -> str:
        """The name in the dump and the file."""
        first, *rest = self.name.split("_")
        return self.json or first + "".join(word.capitalize() for word in rest)


def needed(name: str, kind: Kind, *, wire: str = "", json: str = "") -> Field:
    """Returns a field that the file must have, and the dump always has."""
    return Field(name, kind, wire, json, always=True, required=True)


class Record:
    """A message by the description of its fields.

    model: makes the model's value, from the fields by name.
    extra: fields that only the file has, beside those of the model: `parse_fields` gives them.
    closed: the file may have no other fields than these.
    known: the names of all fields in the file.
    numbers, messages: of the wire's fields, the numbers that enumerations take, and the inner messages.
    """

    def __init__(
        self, model: Callable[..., Any], *fields: Field, extra: tuple[Field, ...] = (), closed: bool = True
    ) -> None:
        self.model = model
        self.fields = fields
        self._parsed = (*fields, *extra)
        self.known = tuple(field.shown for field in self._parsed)
        self._allowed = self.known if closed else None
        self._get = attrgetter(*(field.name for field in fields))
        self._shows = [(field.shown, field.kind.show, field.always, field.empty) for field in fields]
        # A message is read in two parts: the fields that are the same in the model at once, then the others.
        same_fields = [field for field in fields if field.read is same]
        others = [field for field in fields if field.read is not same]
        self._names = [field.name for field in same_fields]
        self._get_same = _getter([field.wire_name for field in same_fields])
        self._reads = [
            (field.name, field.wire_name, field.read, field.kind.message, field.empty) for field in others
        ]
        self._same_shown = [(field.shown, field.always) for field in same_fields]
        self._displays = [
            (field.shown, field.wire_name, field.display, field.kind.message, field.always, field.absent)
            for field in others
        ]
        self.numbers = {
            field.wire_name: field.kind.numbers for field in fields if field.kind.numbers is not None
        }
        self.messages = [field.wire_name for field in fields if field.kind.message]

    def kind(self, *, default: Any = None) -> Kind:
        """Returns the kind of a field that holds such messages."""
        return Kind(self.parse, self.read, self.show, default=default, message=True)

    def read(self, message: Any) -> Any:
        """Returns the model's value of a message. Raises RejectedError."""
        return self.model(**self.read_fields(message))

    def read_fields(self, message: Any) -> dict[str, Any]:
        """Returns the fields of a message as the model's values. Raises RejectedError."""
        values = dict(zip(self._names, self._get_same(message), strict=True))
        for name, wire, read, optional, default in self._reads:
            if optional and not message.HasField(wire):
                values[name] = default
            else:
                values[name] = read(getattr(message, wire))
        return values

    def show(self, value: Any) -> dict[str, Json]:
        """Returns the form of the dump: without what is empty, but for what readers expect."""
        return {
            shown: show(one)
            for (shown, show, always, empty), one in zip(self._shows, self._get(value), strict=True)
            if always or (one and one != empty)
        }

    def display(self, message: Any) -> dict[str, Json]:
        """Returns what `show` gives for the model's value of a message that is known to be readable."""
        shown = {
            name: value
            for (name, always), value in zip(self._same_shown, self._get_same(message), strict=True)
            if value or always
        }
        for name, wire, display, optional, always, absent in self._displays:
            value = absent if optional and not message.HasField(wire) else display(getattr(message, wire))
            if value or always:
                shown[name] = value
        return shown

    def parse(self, value: Any, place: str) -> Any:
        """Returns the model's value of what the file says. Raises LocalConfigError."""
        return self.model(**self.parse_fields(value, place))

    def parse_fields(self, value: Any, place: str) -> dict[str, Any]:
        """Returns the fields of what the file says. Raises LocalConfigError."""
        members = mapping(value, place, self._allowed)
        values: dict[str, Any] = {}
        for field in self._parsed:
            name = field.shown
            if name not in members:
                if field.required:
                    raise problem(place, f"missing field `{name}`")
                values[field.name] = field.empty
            elif members[name] is None and field.empty is None and not field.required:
                values[field.name] = None
            else:
                values[field.name] = field.kind.parse(members[name], f"{place}.{name}" if place else name)
        return values


def _getter(names: Sequence[str]) -> Callable[[Any], Sequence[Any]]:
    match names:
        case []:
            return lambda _: ()
        case [only]:
            return lambda message: (getattr(message, only),)
    return attrgetter(*names)
