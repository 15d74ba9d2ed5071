"""The rules of the stand-in for istio-cni, beside those of the real one (tests/recorded/rules.json)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.needs import needs_programs
from ztunnel.demo.redirection import RedirectionOptions, iptables_rules

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "rules.json").read_text())

pytestmark = [pytest.mark.e2e, needs_programs("iptables", "unshare")]


def saved(program: str, rules: str) -> list[str]:
    """What iptables-save shows once the rules have been put into a network namespace of their own."""
    script = f"{program}-nft-restore --noflush && {program}-nft-save"
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script],
        input=rules,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted(line.rstrip() for line in done.stdout.splitlines() if line and line[0] != "#")


@pytest.mark.parametrize(("program", "ipv6"), [("iptables", False), ("ip6tables", True)])
def test_the_rules_are_those_of_istio_cni(program, ipv6):
    ours = saved(program, iptables_rules(RedirectionOptions(dns=True), ipv6=ipv6))
    assert ours == sorted(line for line in RECORDED[program].splitlines() if line)


@pytest.mark.parametrize("program", ["iptables"])
def test_the_order_within_each_chain_is_theirs(program):
    def chains(lines: list[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        table = ""
        for line in lines:
            if line.startswith("*"):
                table = line
            elif line.startswith("-A "):
                found.setdefault(f"{table} {line.split()[1]}", []).append(line)
        return found

    rules = iptables_rules(RedirectionOptions(dns=True))
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f"{program}-nft-restore --noflush && {program}-nft-save"],
        input=rules, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert chains(done.stdout.splitlines()) == chains(RECORDED[program].splitlines())


def test_the_route_back_is_theirs():
    from ztunnel.demo.redirection import REPLY_MARK, REPLY_RULE_PRIORITY, REPLY_TABLE

    assert (
        f"{REPLY_RULE_PRIORITY}:\tfrom all fwmark {REPLY_MARK:#x}/0xfff lookup {REPLY_TABLE}"
        in RECORDED["ip rule"]
    )
    assert RECORDED["ip route"].split() == ["local", "default", "dev", "lo", "scope", "host"]
