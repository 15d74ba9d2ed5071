"""The themes of dedicated mode once more, with one ztunnel a node: what they say holds in both modes.

The tests are those of the other files, under this file's mesh. What is left out says why.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tests.e2e import (
    test_backpressure,
    test_endings,
    test_live_changes,
    test_outside,
    test_pooling,
    test_socks5,
    test_traffic,
    test_wrong_clients,
)
from tests.e2e.conftest import StandardMesh
from tests.support.two_nodes import TwoNodes

THEMES = (
    test_backpressure,
    test_endings,
    test_live_changes,
    test_outside,
    test_pooling,
    test_socks5,
    test_traffic,
    test_wrong_clients,
)
LEFT_OUT = {
    # It counts the lines of a pod's own ztunnel; test_inpod_redirection.py has both backends.
    "test_both_redirection_backends_carry_traffic",
}

for _theme in THEMES:
    for _name, _value in vars(_theme).items():
        if not _name.startswith("__") and _name not in LEFT_OUT:
            globals().setdefault(_name, _value)


@pytest.fixture(scope="module")
def _standard_mesh() -> Iterator[StandardMesh]:
    with TwoNodes.open({"UNSTABLE_ENABLE_SOCKS5": "true"}) as nodes:
        mesh = nodes.mesh
        other = mesh.node("a").pod("other", namespace="elsewhere")
        legacy = mesh.node("b").pod("legacy", captured=False, protocol="TCP")
        crowd = mesh.node("b").pod("crowd", captured=False, registered=False)
        mesh.remove_pod(nodes.neighbour)
        mesh.start()
        trio.run(mesh.update)  # the nodes' ztunnels run already, and know the pods from before
        pods = (nodes.client, other, nodes.server, legacy, nodes.outside, crowd)
        yield StandardMesh(mesh, *pods, nodes.vip)
        for node in nodes.deployment.nodes.values():
            process = node.current.process
            status = process.stop(grace=10)
            assert status == 0, f"{process.name} ended with {status}:\n{process.output()[-4000:]}"
