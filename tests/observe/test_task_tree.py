from __future__ import annotations

import json

import msgspec
import trio
import trio.testing

from ztunnel.observe.task_tree import TaskAges, task_nodes, task_tree


async def waits_for_ever() -> None:
    await trio.Event().wait()


async def parent() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits_for_ever, name="outbound 10.0.0.3:41234 → 10.0.0.9:8080")
        nursery.start_soon(waits_for_ever, name="a first one")


async def test_the_tree_shows_names_ages_and_places(nursery, autojump_clock):
    ages = TaskAges()
    trio.lowlevel.add_instrument(ages)
    nursery.start_soon(parent, name="pod ns/a")
    await trio.sleep(12.5)
    lines = list(task_tree(ages))
    trio.lowlevel.remove_instrument(ages)
    index = next(i for i, line in enumerate(lines) if "pod ns/a" in line)
    depth = len(lines[index]) - len(lines[index].lstrip())
    assert lines[index].lstrip().startswith("pod ns/a  12.5s  ")
    assert "parent" in lines[index]
    assert lines[index + 1] == " " * (depth + 2) + "[nursery nursery]  observe/test_task_tree.py parent"
    assert lines[index + 2].startswith(" " * (depth + 4) + "a first one  12.5s  ")
    assert lines[index + 3].startswith(" " * (depth + 4) + "outbound 10.0.0.3:41234 → 10.0.0.9:8080  12.5s")
    assert "Event.wait" in lines[index + 3] or "ParkingLot.park" in lines[index + 3]
    assert lines[0].startswith("<init>") or "init" in lines[0]
    nursery.cancel_scope.cancel()


async def test_a_name_cannot_break_a_line(nursery):
    nursery.start_soon(waits_for_ever, name="evil\nname")
    await trio.testing.wait_all_tasks_blocked()
    lines = list(task_tree())
    assert all("\n" not in line for line in lines)
    assert any("evil\\nname" in line for line in lines)
    nursery.cancel_scope.cancel()


async def test_ages_of_tasks_that_ended_are_forgotten(nursery):
    ages = TaskAges()
    trio.lowlevel.add_instrument(ages)
    async with trio.open_nursery() as inner:
        for _ in range(10):
            inner.start_soon(trio.lowlevel.checkpoint)
    trio.lowlevel.remove_instrument(ages)
    assert len(ages._spawned) == 0


def test_without_a_loop_there_is_no_tree():
    try:
        lines = list(task_tree())
    except RuntimeError:
        return
    assert lines == []


async def two_nurseries() -> None:
    async with trio.open_nursery() as outer:
        outer.start_soon(waits_for_ever, name="of the outer")
        async with trio.open_nursery() as inner:
            inner.start_soon(waits_for_ever, name="of the inner")


async def test_each_nursery_is_a_line_and_its_tasks_stand_below_it(nursery):
    nursery.start_soon(two_nurseries, name="pod ns/a")
    await trio.testing.wait_all_tasks_blocked()
    nodes = list(task_nodes())
    start = next(i for i, node in enumerate(nodes) if node.name == "pod ns/a")
    base = nodes[start].depth
    shown = [(node.depth - base, node.kind, node.name) for node in nodes[start : start + 5]]
    assert shown == [
        (0, "task", "pod ns/a"),
        (1, "nursery", "outer"),
        (2, "task", "of the outer"),
        (2, "nursery", "inner"),
        (3, "task", "of the inner"),
    ]
    nursery.cancel_scope.cancel()


async def waits_for_a_peer(peer: str) -> None:
    await trio.Event().wait()
    print(peer)


async def test_words_are_read_from_the_variables_of_what_waits(nursery):
    nursery.start_soon(waits_for_a_peer, "10.0.0.9", name="tunnel")
    await trio.testing.wait_all_tasks_blocked()
    words = {"waits_for_a_peer": lambda variables: f"waits for {variables['peer']}"}
    [node] = [node for node in task_nodes(words=words) if node.name == "tunnel"]
    assert node.doing == ("waits for 10.0.0.9",)
    assert "(waits for 10.0.0.9)" in str(node)
    assert json.loads(msgspec.json.encode(node))["kind"] == "task"
    nursery.cancel_scope.cancel()


async def test_a_variable_that_is_not_set_yet_costs_its_words_alone(nursery):
    nursery.start_soon(waits_for_a_peer, "10.0.0.9", name="tunnel")
    await trio.testing.wait_all_tasks_blocked()
    words = {"waits_for_a_peer": lambda variables: f"waits for {variables['later']}"}
    [node] = [node for node in task_nodes(words=words) if node.name == "tunnel"]
    assert node.doing == ()
    nursery.cancel_scope.cancel()
