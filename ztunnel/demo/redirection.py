"""The rules with which istio-cni redirects a pod's traffic to ztunnel, as iptables and as nftables.

How they work. An application's connection leaves through the OUTPUT hook and is redirected to port 15001 on
loopback. A connection that arrives at the pod is redirected to 15006, unless it goes to 15008, where ztunnel
serves HBONE. ztunnel's own packets have the mark 0x539, which exempts them from both. One more rule is
needed: ztunnel connects to the application with the *client's* address as source, so the application's
answers are addressed to the client and would leave the pod. Therefore the connection is marked when ztunnel's
packet comes in (CONNMARK 0x111), the mark is restored on the answers, and a policy route sends marked packets
back to loopback.

Source: istio-cni; docs/protocol/operations.md#redirection-rules.
"""

from __future__ import annotations

from dataclasses import dataclass

PACKET_MARK = 0x539
REPLY_MARK = 0x111
MARK_MASK = 0xFFF
REPLY_TABLE = 100
REPLY_RULE_PRIORITY = 32764


@dataclass(frozen=True, slots=True)
class RedirectionOptions:
    """Which traffic of a pod goes through ztunnel.

    dns: also DNS queries, to 15053.
    inbound: also what arrives (False: the annotation ``ambient.istio.io/bypass-inbound-capture``).
    virtual_interfaces: what arrives on these is treated as the pod's own outgoing traffic
        (``istio.io/reroute-virtual-interfaces``).
    """

    dns: bool = False
    inbound: bool = True
    virtual_interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Family:
    probe: str
    loopback: str
    nft: str


_IPV4 = _Family("169.254.7.127", "127.0.0.1/32", "ip")
_IPV6 = _Family("fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "::1/128", "ip6")


def iptables_rules(options: RedirectionOptions, *, ipv6: bool = False) -> str:
    """Returns the input for ``iptables-restore --noflush`` in a pod.

    With ``ipv6`` for ``ip6tables-restore``.
    """
    family = _IPV6 if ipv6 else _IPV4
    local = f"! -d {family.loopback}"
    unmarked = f"-m mark ! --mark {PACKET_MARK:#x}/{MARK_MASK:#x}"
    marked = f"-m mark --mark {PACKET_MARK:#x}/{MARK_MASK:#x}"
    reply = f"{REPLY_MARK:#x}/{MARK_MASK:#x}"

    nat = [
        line
        for interface in options.virtual_interfaces
        for line in (
            f"-A ISTIO_PRERT -i {interface} -p tcp -j REDIRECT --to-ports 15001",
            f"-A ISTIO_PRERT -i {interface} -p tcp -j RETURN",
        )
    ]
    if options.inbound:
        nat.append(f"-A ISTIO_PRERT -s {family.probe} -p tcp -m tcp -j ACCEPT")
    nat.append(f"-A ISTIO_OUTPUT -d {family.probe} -p tcp -m tcp -j ACCEPT")
    if options.inbound:
        nat.append(f"-A ISTIO_PRERT {local} -p tcp ! --dport 15008 {unmarked} -j REDIRECT --to-ports 15006")
    if options.dns:
        nat += [
            f"-A ISTIO_OUTPUT ! -o lo -p udp {unmarked} -m udp --dport 53 -j REDIRECT --to-port 15053",
            f"-A ISTIO_OUTPUT {local} -p tcp --dport 53 {unmarked} -j REDIRECT --to-ports 15053",
        ]
    nat += [
        f"-A ISTIO_OUTPUT -p tcp -m mark --mark {reply} -j ACCEPT",
        f"-A ISTIO_OUTPUT {local} -o lo -j ACCEPT",
        f"-A ISTIO_OUTPUT {local} -p tcp {unmarked} -j REDIRECT --to-ports 15001",
    ]
    restore = "--restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
    mangle = [
        f"-A ISTIO_PRERT {marked} -j CONNMARK --set-xmark {reply}",
        f"-A ISTIO_OUTPUT -m connmark --mark {reply} -j CONNMARK {restore}",
    ]
    tables = {"mangle": mangle, "nat": nat}
    if options.dns:
        tables["raw"] = [
            f"-A ISTIO_OUTPUT -p udp {marked} -m udp --dport 53 -j CT --zone 1",
            f"-A ISTIO_PRERT -p udp {unmarked} -m udp --sport 53 -j CT --zone 1",
        ]
    text = ""
    for table, rules in tables.items():
        lines = [
            f"*{table}",
            ":ISTIO_PRERT - [0:0]",
            ":ISTIO_OUTPUT - [0:0]",
            "-A PREROUTING -j ISTIO_PRERT",
            "-A OUTPUT -j ISTIO_OUTPUT",
            *rules,
            "COMMIT",
        ]
        text += "\n".join(lines) + "\n"
    return text


def nftables_rules(options: RedirectionOptions) -> str:
    """Returns the input for ``nft -f -`` in a pod: the rules of `iptables_rules`, for both IP versions."""
    return "".join(_nftables_family(options, family) for family in (_IPV4, _IPV6))


def _nftables_family(options: RedirectionOptions, family: _Family) -> str:
    ip = family.nft
    local = f"{ip} daddr != {family.loopback.partition('/')[0]}"
    unmarked = f"meta mark & {MARK_MASK:#x} != {PACKET_MARK:#x}"
    marked = f"meta mark & {MARK_MASK:#x} == {PACKET_MARK:#x}"
    # What iptables' CONNMARK --set-xmark value/mask means: clear the masked bits, then xor the value.
    set_reply = f"ct mark set ct mark & {0xFFFFFFFF ^ MARK_MASK:#x} ^ {REPLY_MARK:#x}"

    arriving = [
        f'iifname "{interface}" meta l4proto tcp redirect to :15001'
        for interface in options.virtual_interfaces
    ]
    if options.inbound:
        arriving += [
            f"{ip} saddr {family.probe} meta l4proto tcp accept",
            f"{local} tcp dport != 15008 {unmarked} redirect to :15006",
        ]
    leaving = [f"{ip} daddr {family.probe} meta l4proto tcp accept"]
    if options.dns:
        leaving += [
            f'oifname != "lo" udp dport 53 {unmarked} redirect to :15053',
            f"{local} tcp dport 53 {unmarked} redirect to :15053",
        ]
    leaving += [
        f"meta l4proto tcp meta mark & {MARK_MASK:#x} == {REPLY_MARK:#x} accept",
        f'oifname "lo" {local} accept',
        f"{local} meta l4proto tcp {unmarked} redirect to :15001",
    ]
    chains = {
        "mangle-prerouting": ("type filter hook prerouting priority mangle", [f"{marked} {set_reply}"]),
        "mangle-output": (
            "type route hook output priority mangle",
            [f"ct mark & {MARK_MASK:#x} == {REPLY_MARK:#x} meta mark set ct mark"],
        ),
        "nat-prerouting": ("type nat hook prerouting priority dstnat", arriving),
        "nat-output": ("type nat hook output priority -100", leaving),
    }
    if options.dns:
        chains["raw-prerouting"] = (
            "type filter hook prerouting priority raw",
            [f"udp sport 53 {unmarked} ct zone set 1"],
        )
        chains["raw-output"] = (
            "type filter hook output priority raw",
            [f"udp dport 53 {marked} ct zone set 1"],
        )
    body = ""
    for name, (kind, rules) in chains.items():
        body += f"  chain {name} {{\n    {kind}; policy accept;\n"
        body += "".join(f"    {rule}\n" for rule in rules) + "  }\n"
    return f"table {ip} istio-ambient {{\n{body}}}\n"
