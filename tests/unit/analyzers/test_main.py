"""The list of analyzers: each apart from the others."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from crashd.analyzers import main as program
from crashd.analyzers.analyzer import Analyzer

OPENED: Any = SimpleNamespace(core=SimpleNamespace(unpacked_bytes=5), options={})


class First(Analyzer):
    name = "first"

    def applies(self) -> bool:
        return True

    def facts(self) -> dict[str, Any]:
        return {"threads": [1]}


class Broken(First):
    name = "broken"

    def facts(self) -> dict[str, Any]:
        raise NotImplementedError("no such machine")


class Absent(First):
    name = "absent"

    def applies(self) -> bool:
        return False

    def prepare(self) -> int:
        raise AssertionError("not to be prepared")


class Large(First):
    name = "large"

    def prepare(self) -> int:
        return 1000


class Talker(First):
    name = "talker"

    def facts(self) -> dict[str, Any]:
        return {"interpreted": ["x" * program.OUTPUT_MAX]}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(program, "_write", lambda raw: lines.append(json.loads(raw)))
    return lines


def test_print_facts_later_failure_leaves_the_first_facts(printed: list[dict[str, Any]]) -> None:
    program._print_facts(
        OPENED, [First(OPENED), Broken(OPENED), First(OPENED)], ["no room"], program.OUTPUT_MAX
    )
    assert printed[0] == {"threads": [1], "problems": ["no room"]}
    assert printed[1] == {"begun": "broken"}
    assert printed[2] == {"problems": ["broken: NotImplementedError: no such machine"]}
    assert printed[3] == {"begun": "first"}
    assert printed[4] == {"threads": [1], "problems": []}
    assert printed[5]["whole"]


def test_print_facts_failure_of_the_first_is_the_workers(printed: list[dict[str, Any]]) -> None:
    with pytest.raises(NotImplementedError):
        program._print_facts(OPENED, [Broken(OPENED)], [], program.OUTPUT_MAX)
    assert not printed


def test_print_facts_too_long_says_so(printed: list[dict[str, Any]]) -> None:
    program._print_facts(OPENED, [First(OPENED), Talker(OPENED)], [], program.OUTPUT_MAX)
    assert printed[1] == {"begun": "talker"}
    assert "result has" in printed[2]["problems"][0]
    assert printed[3]["whole"]
    printed.clear()
    program._print_facts(OPENED, [Talker(OPENED)], [], program.OUTPUT_MAX)
    assert "result has" in printed[0]["failed"]


def test_prepare_leaves_out_what_does_not_apply_or_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "analyzers_of", lambda _: [First, Absent, Large, Large])
    chosen, scratch, problems = program._prepare(OPENED, 1500)
    assert [a.name for a in chosen] == ["first", "large"]
    assert scratch == 1000
    assert problems == ["large: they take 1000 bytes of memory"]
