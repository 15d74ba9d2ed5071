"""The files of the demos' meshes are ones that ztunnel reads."""

from __future__ import annotations

from importlib import resources

import pytest

from ztunnel.xds.local_file import parse


@pytest.mark.parametrize("name", ["loopback.yaml", "mesh.yaml"])
def test_a_demo_reads_its_mesh(name: str):
    config = parse(resources.files("ztunnel.demo").joinpath(name).read_text())
    assert config.workloads
    assert config.policies
