"""Commands that pages show, run as they stand there against a ztunnel and the chart."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import StandardMesh
from tests.needs import needs_programs
from tests.support.traffic import read_exactly, serve
from tests.tools import find_tool

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: str, program: str) -> list[str]:
    """The commands of a page's blocks that start with a program, their continued lines joined."""
    text = "".join(BLOCK.findall((ROOT / page).read_text())).replace("\\\n", " ")
    lines = [re.sub(r" +# .*", "", line) for line in text.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


CURL = [(page, line) for page in ("docs/operate.md", "README.md") for line in commands(page, "curl")]
RELEASES = [line for line in commands("docs/replace.md", "helm") if "charts/ztunnel" in line]


def test_pages_show_commands() -> None:
    assert len(CURL) >= 6
    assert len(RELEASES) == 2


@needs_programs("curl")
@pytest.mark.parametrize(("page", "line"), [one for one in CURL if "--socks5" not in one[1]])
async def test_a_request_of_a_page_is_answered(standard: StandardMesh, page: str, line: str) -> None:
    async with (
        serve(standard.server, 8080),
        await standard.client.connect(standard.server.ipv4, 8080) as stream,
    ):
        await stream.send_all(b"x")
        assert await read_exactly(stream, 1) == b"x"
    command = line.replace("curl ", "curl -fsS ", 1)
    done = standard.client.run("sh", "-c", command)
    assert (done.returncode, done.stderr) == (0, ""), page
    assert done.stdout
    standard.client.run("curl", "-fsS", "-X", "POST", "localhost:15000/logging?reset")


@pytest.mark.parametrize("line", RELEASES)
def test_a_release_of_replace_md_is_one_that_the_chart_takes(line: str, tmp_path: Path) -> None:
    _, verb, release, chart, *options = shlex.split(line, comments=True)
    assert verb in {"install", "upgrade"}
    (tmp_path / "values.yaml").write_text("logAsJson: true\n")
    command = [find_tool("helm"), "template", release, str(ROOT / chart), *options]
    rendered = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr
    assert 'image: "registry.example/mesh/ztunnel:1.31.0"' in rendered.stdout
    name = "ztunnel-python" if verb == "install" else "ztunnel"
    assert f"name: {name}\n" in rendered.stdout
