"""How ``ztunnel demo`` ends when it cannot go on."""

from __future__ import annotations

import errno
import os

import pytest

from ztunnel.demo import command
from ztunnel.demo.story import DemoFailedError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DemoFailedError("web got no answer"), "The demo failed: web got no answer"),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/proc/sys/net/ipv6/conf/all/disable_ipv6"),
            "Read-only file system: '/proc/sys/net/ipv6/conf/all/disable_ipv6'",
        ),
    ],
)
def test_what_the_machine_refuses_is_told_in_a_sentence(error, text, monkeypatch, capsys):
    def refused(*_arguments: object, **_settings: object) -> None:
        raise error

    monkeypatch.setattr(command, "_tell", refused)
    assert command.main([]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert text in printed
    assert "Everything that was made has been removed." in printed


def test_an_unknown_argument_is_refused_with_the_usage(capsys):
    assert command.main(["--sotry"]) == 1
    assert "unknown argument: --sotry\nusage: ztunnel demo" in capsys.readouterr().err
