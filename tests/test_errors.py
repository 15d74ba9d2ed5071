"""Every error that a person can meet has a stable code of its own and a row in docs/errors.md."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import ztunnel
from ztunnel.decide.plans import RefusalKind
from ztunnel.errors import ZtunnelError

DOCS = Path(__file__).parent.parent / "docs" / "errors.md"
CODE = re.compile(r"ZT-[A-Z0-9]+-\d{3}")


def error_classes() -> set[type[ZtunnelError]]:
    for module in pkgutil.walk_packages(ztunnel.__path__, "ztunnel."):
        if not module.name.startswith("ztunnel.pb") and module.name != "ztunnel.__main__":
            importlib.import_module(module.name)
    found: set[type[ZtunnelError]] = set()
    waiting = [ZtunnelError]
    while waiting:
        for error in waiting.pop().__subclasses__():
            if error not in found and error.__module__.startswith("ztunnel."):
                found.add(error)
                waiting.append(error)
    return found


def own_codes() -> dict[str, list[str]]:
    """The codes and which classes claim them; a class without one of its own has its base's."""
    claimed: dict[str, list[str]] = {}
    for error in error_classes():
        if "code" in vars(error):
            claimed.setdefault(error.code, []).append(f"{error.__module__}.{error.__qualname__}")
    return claimed


def documented() -> list[str]:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ZT-")]
    return [CODE.search(row.split("|")[1]).group() for row in rows]  # type: ignore[union-attr]  # see the filter


def test_no_two_errors_share_a_code():
    assert {code: names for code, names in own_codes().items() if len(names) > 1} == {}


def test_codes_have_the_one_form():
    assert [code for code in own_codes() if not CODE.fullmatch(code)] == []


def test_every_code_has_exactly_one_row():
    codes = {*own_codes(), *(kind.value for kind in RefusalKind), ZtunnelError.code}
    rows = documented()
    assert sorted(codes - set(rows)) == []
    assert sorted(set(rows) - codes) == []
    assert sorted({code for code in rows if rows.count(code) > 1}) == []
