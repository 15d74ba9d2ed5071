"""Rules without the program nft: the kernel holds what it would have made of them."""

from __future__ import annotations

import itertools
import subprocess

import pytest

from tests.needs import needs_programs
from tests.support.namespaces import needs_namespaces
from ztunnel.demo.namespaces import OwnedNamespace
from ztunnel.demo.nftables import NetlinkRefusedError, apply_rules, compile_rule
from ztunnel.demo.redirection import RedirectionOptions, nftables_rules

OPTIONS = [
    RedirectionOptions(dns=dns, inbound=inbound, virtual_interfaces=interfaces)
    for dns, inbound, interfaces in itertools.product((False, True), (False, True), ((), ("veth7", "tap0")))
]


def listed(namespace: OwnedNamespace) -> str:
    with namespace.entered():
        return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


@needs_namespaces
@needs_programs("nft")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernel_holds_what_nft_makes_of_the_same_text(options: RedirectionOptions):
    text = nftables_rules(options)
    ours, theirs = OwnedNamespace.make("ours"), OwnedNamespace.make("theirs")
    try:
        apply_rules(ours, text)
        with theirs.entered():
            subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
        assert listed(ours) == listed(theirs)
        assert "redirect to :15001" in listed(ours)
    finally:
        ours.close()
        theirs.close()


@needs_namespaces
def test_rules_that_the_kernel_refuses_leave_nothing_behind():
    namespace = OwnedNamespace.make("refused")
    # A redirection is possible in chains of the type nat alone.
    text = nftables_rules(RedirectionOptions()).replace("type nat hook output", "type filter hook output")
    try:
        with pytest.raises(NetlinkRefusedError, match="nf_tables: "):
            apply_rules(namespace, text)
        apply_rules(namespace, nftables_rules(RedirectionOptions()))
    finally:
        namespace.close()


@pytest.mark.parametrize(
    "words", ["reject", "ip saddr 10.0.0.0/8 accept", "tcp dport 53x accept", "acceptance"]
)
def test_words_that_are_not_known_are_refused(words: str):
    with pytest.raises(ValueError, match="not known in a rule"):
        compile_rule(words)


def test_a_port_is_compared_after_its_protocol():
    names = [name for name, _ in compile_rule("tcp dport != 15008 redirect to :15006")]
    assert names == ["meta", "cmp", "payload", "cmp", "immediate", "redir"]
