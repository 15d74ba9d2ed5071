"""The picture of the demo's mesh."""

from __future__ import annotations

from ztunnel.demo.drawing import draw_mesh

MESH = {"a": [("client", "10.77.1.10"), ("stranger", "10.77.1.11")], "b": [("web", "10.77.2.10")]}


def test_every_line_ends_where_the_others_end():
    assert len({len(line) for line in draw_mesh(MESH)}) == 1


def test_each_pod_is_on_the_side_of_its_node():
    top, first, second, _ = draw_mesh(MESH)
    middle = len(top) // 2
    assert top.index("node a") < middle < top.index("node b")
    assert first.index("client 10.77.1.10 + ztunnel") < middle < first.index("web 10.77.2.10 + ztunnel")
    assert second.index("stranger 10.77.1.11 + ztunnel") < middle
    assert second[middle:].strip(" │") == ""
