"""The fuzzed parsers in every run: the corpus, and bytes that hypothesis makes up and changes.

``HYPOTHESIS_PROFILE=deep`` makes many times as many; ``make fuzz`` is guided by coverage.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import cases
from tests.fuzz.seeds import CORPUS, seeds
from tests.fuzz.targets import TARGETS

CASES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
EXAMPLES = {name: [path.read_bytes() for path in CASES if path.parent.name == name] for name in TARGETS}
# A conversation with stock h2 is hypothesis's own to make up: tests/hbone/test_equivalence.py.
BY_BYTES = [name for name in TARGETS if name != "hbone-and-h2"]


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_corpus(path: Path):
    TARGETS[path.parent.name](path.read_bytes())


def test_each_target_has_examples_as_the_seeds_say():
    assert {path.parent.name for path in CASES} == set(TARGETS)
    for name, body in seeds():
        assert body in EXAMPLES[name]


@st.composite
def changed(draw: st.DrawFn, examples: list[bytes]) -> bytes:
    """An example with some bytes changed, put in, taken out or repeated, or two of them spliced."""
    body = bytearray(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        match draw(st.integers(0, 4)):
            case 0:
                body[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                body[at:at] = draw(st.binary(min_size=1, max_size=4))
            case 2:
                del body[at : at + draw(st.integers(1, 8))]
            case 3:
                body[at:at] = body[max(0, at - draw(st.integers(1, 16))) : at]
            case _:
                other = draw(st.sampled_from(examples))
                body[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(body)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", BY_BYTES)
def test_made_up_bytes(name: str):
    @settings(parent=settings(), max_examples=settings().max_examples // 2)
    @given(st.binary(max_size=200) | changed(EXAMPLES[name]) | changed(EXAMPLES[name]))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


def test_the_input_that_made_a_target_fail_is_printed(tmp_path: Path):
    """Whole, and as Python writes it; what an earlier run left there is not."""
    assert cases(tmp_path, 100) == "no input was kept"
    for name, data, written in (
        ("crash-1", b"\x00'\xff", 100),
        ("timeout-2", b"t", 150),
        ("oom-3", b"o", 99),
    ):
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (written, written))
    (tmp_path / "output").write_text("not an input")
    assert cases(tmp_path, 100) == "crash-1: b\"\\x00'\\xff\"\ntimeout-2: b't'"
