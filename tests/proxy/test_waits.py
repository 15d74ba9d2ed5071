from __future__ import annotations

import importlib
import pkgutil
from types import FunctionType

import pytest

import ztunnel.proxy
import ztunnel.tunnel
from ztunnel.proxy.waits import WORDS


def functions() -> set[str]:
    """The qualified names of all functions and methods of the data path."""
    found: set[str] = set()
    for package in (ztunnel.proxy, ztunnel.tunnel):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for one in vars(importlib.import_module(module.name)).values():
                members = vars(one).values() if isinstance(one, type) else [one]
                found |= {member.__qualname__ for member in members if isinstance(member, FunctionType)}
    return found


@pytest.mark.parametrize("name", sorted(WORDS))
def test_a_wait_is_that_of_a_function_that_exists(name):
    assert name in functions()
