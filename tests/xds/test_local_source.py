"""The local file: loaded once or fail, then followed; broken text and a lost file change nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import trio

from tests.support.logs import capture_logs
from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.config.model import LocalFile, LocalStatic
from ztunnel.messages import MeshDelta, Origin, Rejected, ResourceKind
from ztunnel.observe.logging import LogRecord
from ztunnel.state.local_reader import LocalConfigError
from ztunnel.state.store import MeshStore
from ztunnel.xds.local_source import LocalFileError, LocalXds

WORKLOAD = "- {{uid: {0}, name: {0}, namespace: ns, workloadIps: [10.0.0.{1}], services: {{}}}}\n"
POLICY = (
    "policies:\n- {name: p, namespace: ns, scope: Namespace, action: Deny, dryRun: false, "
    "rules: [[[{destinationPorts: [9999]}]]]}\n"
)


def workloads(*names: str) -> str:
    return "workloads:\n" + "".join(WORKLOAD.format(name, n + 1) for n, name in enumerate(names))


class Mesh:
    def __init__(self) -> None:
        self.store = MeshStore(None)
        self.deltas: list[MeshDelta] = []
        self.changed = trio.Event()

    async def apply(self, delta: MeshDelta) -> list[Rejected]:
        await trio.lowlevel.checkpoint()
        self.deltas.append(delta)
        application = self.store.apply(delta)
        changed, self.changed = self.changed, trio.Event()
        changed.set()
        return [Rejected(name, reason) for name, reason in application.rejected]

    def names(self, *candidates: str) -> set[str]:
        return {name for name in candidates if self.store.workload(name)}

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self.changed.wait()


@asynccontextmanager
async def watching(
    path: Path, bounds: ControlBounds = DEFAULTS.control
) -> AsyncIterator[tuple[Mesh, LocalXds, list[LogRecord]]]:
    mesh = Mesh()
    bounds = dataclasses.replace(bounds, local_file_quiet=0.02)
    local = LocalXds(LocalFile(str(path)), mesh.apply, count(1), bounds=bounds)
    with capture_logs() as records, trio.fail_after(20):
        await local.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.watch)
            yield mesh, local, records
            nursery.cancel_scope.cancel()


def replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)


async def error_of(local: LocalXds) -> str:
    while local.last_error is None:  # noqa: ASYNC110  # nothing else tells
        await trio.sleep(0.01)
    return local.last_error


async def test_inline_text_is_loaded_and_not_watched():
    mesh = Mesh()
    local = LocalXds(LocalStatic(workloads("a") + POLICY), mesh.apply, count(7))
    with capture_logs() as records:
        await local.load()
    await local.watch()
    assert [(d.number, d.kind, d.origin) for d in mesh.deltas] == [
        (7, ResourceKind.ADDRESS, Origin.LOCAL),
        (8, ResourceKind.AUTHORIZATION, Origin.LOCAL),
    ]
    assert mesh.store.workload("a") is not None
    (line,) = records
    assert (line.message, line.level.name.lower(), line.scope) == (
        "local config initialized",
        "info",
        "ztunnel::state",
    )
    assert dict(line.fields) == {"num_workloads": 1, "num_policies": 1, "num_services": 0}


async def test_a_broken_text_at_the_start_is_fatal_and_names_the_place():
    mesh = Mesh()
    with pytest.raises(LocalConfigError, match=r"workloads\[0\]"):
        await LocalXds(LocalStatic("workloads: [{}]"), mesh.apply, count(1)).load()
    assert mesh.deltas == []


async def test_a_file_that_cannot_be_read_at_the_start_is_fatal(tmp_path):
    with pytest.raises(LocalFileError, match="No such file"):
        await LocalXds(LocalFile(str(tmp_path / "none")), Mesh().apply, count(1)).load()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(LocalFileError, match="UTF-8"):
        await LocalXds(LocalFile(str(tmp_path / "binary")), Mesh().apply, count(1)).load()


async def test_an_entry_that_is_refused_at_the_start_is_fatal():
    async def refuse(delta: MeshDelta) -> list[Rejected]:
        await trio.lowlevel.checkpoint()
        return [Rejected(delta.resources[0].name, "no good")]

    with pytest.raises(LocalFileError, match="a: no good"):
        await LocalXds(LocalStatic(workloads("a")), refuse, count(1)).load()


async def test_an_empty_file_is_an_empty_mesh(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.touch()
    async with watching(path) as (mesh, local, _):
        assert mesh.deltas == []
        assert local.last_error is None


@pytest.mark.parametrize("write", [Path.write_text, replace], ids=["in place", "renamed over"])
async def test_a_change_is_put_into_force_as_the_difference(tmp_path, write, autojump_clock):
    path = tmp_path / "mesh.yaml"
    write(path, workloads("a", "b"))
    async with watching(path) as (mesh, _, records):
        write(path, workloads("a", "c"))
        await mesh.until(lambda: mesh.names("a", "b", "c") == {"a", "c"})
        assert [r.name for r in mesh.deltas[-1].resources] == ["c"]
        assert mesh.deltas[-1].removed == ("b",)
        await trio.sleep(0.1)
        assert [r.message for r in records] == ["local config initialized", "local config reloaded"]


async def test_a_broken_text_keeps_the_last_good_one_and_says_so(tmp_path, autojump_clock):
    path = tmp_path / "mesh.yaml"
    path.write_text(workloads("a"))
    async with watching(path) as (mesh, local, records):
        replace(path, "workloads: [{nonsense: 1}]")
        assert "nonsense" in await error_of(local)
        assert mesh.names("a") == {"a"}
        (line,) = [r for r in records if r.level.name.lower() == "error"]
        assert line.message == "local config cannot be used, the last good one stays in force"
        assert line.fields["path"] == str(path)
        replace(path, workloads("b"))
        await mesh.until(lambda: mesh.names("a", "b") == {"b"})
        await trio.sleep(0.1)
        assert local.last_error is None


async def test_a_lost_file_keeps_the_last_good_one_and_heals(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(workloads("a"))
    async with watching(path) as (mesh, local, _):
        path.unlink()
        assert "No such file" in await error_of(local)
        assert mesh.names("a") == {"a"}
        path.write_text(workloads("a", "b"))
        await mesh.until(lambda: mesh.names("a", "b") == {"a", "b"})


async def test_the_error_is_forgotten_when_the_same_text_comes_back(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(workloads("a"))
    async with watching(path) as (mesh, local, records):
        path.unlink()
        await error_of(local)
        path.write_text(workloads("a"))
        while local.last_error is not None:  # noqa: ASYNC110  # nothing else tells
            await trio.sleep(0.01)
        assert len(mesh.deltas) == 1
        assert records[-1].message == "local config reloaded"


async def test_a_config_map_is_followed_when_its_symlink_is_swapped(tmp_path):
    for version, text in (("v1", workloads("a")), ("v2", workloads("b"))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "mesh.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("v1")
    path = tmp_path / "mesh.yaml"
    path.symlink_to("..data/mesh.yaml")
    async with watching(path) as (mesh, _, _records):
        (tmp_path / "..data_tmp").symlink_to("v2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await mesh.until(lambda: mesh.names("a", "b") == {"b"})


async def test_a_directory_that_is_replaced_is_followed(tmp_path):
    directory = tmp_path / "config"
    directory.mkdir()
    path = directory / "mesh.yaml"
    path.write_text(workloads("a"))
    async with watching(path, ControlBounds(watch_retry=0.05)) as (mesh, local, _):
        shutil.rmtree(directory)
        await error_of(local)
        directory.mkdir()
        path.write_text(workloads("b"))
        await mesh.until(lambda: mesh.names("a", "b") == {"b"})
        path.write_text(workloads("c"))
        await mesh.until(lambda: mesh.names("b", "c") == {"c"})


async def test_a_change_between_loading_and_watching_is_not_missed(tmp_path):
    path = tmp_path / "mesh.yaml"
    path.write_text(workloads("a"))
    mesh = Mesh()
    local = LocalXds(LocalFile(str(path)), mesh.apply, count(1), bounds=ControlBounds(local_file_quiet=0.02))
    await local.load()
    replace(path, workloads("b"))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.watch)
            await mesh.until(lambda: mesh.names("a", "b") == {"b"})
            nursery.cancel_scope.cancel()
