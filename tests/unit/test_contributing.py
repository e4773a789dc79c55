"""CONTRIBUTING.md names files and places that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_layering import WINGS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
CHANGES = {
    "A cause of process crashes",
    "A title of kernel crashes",
    "A metric",
    "A verb of crashctl",
    "A container runtime",
    "A format of kernel dumps",
}
_PATH = re.compile(r"(?:crashd|tests|packaging|etc|systemd)/[\w./-]*[\w/]")
_ROW = re.compile(r"^\| `([^`]+/[^`]+)` \| `([^`]+)` \|", re.MULTILINE)


def read_changes(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return file and place of each row, by the change that it belongs to."""
    parts = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: _ROW.findall(part) for part in parts}


def names_in(source: str) -> Iterator[str]:
    """Yield every name that a module defines, uses or imports."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def is_place(path: Path, place: str) -> bool:
    """Return whether a file has such a place: a name in Python, a word anywhere else."""
    text = path.read_text()
    if path.suffix == ".py":
        return place in set(names_in(text))
    return re.search(rf"\b{re.escape(place)}\b", text) is not None


def find_wrong(text: str) -> list[str]:
    """Say which rows name a file or a place that does not exist."""
    rows = [row for rows in read_changes(text).values() for row in rows]
    return [
        f"{name}: {place}"
        for name, place in rows
        if not (ROOT / name).is_file() or not is_place(ROOT / name, place)
    ]


def test_each_usual_change_has_its_files_and_places() -> None:
    changes = read_changes(TEXT)
    assert set(changes) == CHANGES
    assert all(len(rows) >= 2 for rows in changes.values())
    assert find_wrong(TEXT) == []


@pytest.mark.parametrize(
    "row",
    [
        "| `crashd/domain/cause/gone.py` | `explain` | a file that does not exist |",
        "| `crashd/domain/cause/explain.py` | `gone` | a place that does not exist |",
        "| `NEWS/gone.md` | `News` | outside of the tree |",
    ],
)
def test_a_file_or_place_that_is_gone_is_found(row: str) -> None:
    assert len(find_wrong(f"### A change\n{row}\n")) == 1


def test_each_usual_change_touches_three_modules_at_most() -> None:
    """One that needs more is a sign that something is written twice."""
    for change, rows in read_changes(TEXT).items():
        modules = [name for name, _ in rows if name.startswith("crashd/")]
        assert len(modules) <= 3, change


def test_each_slow_test_file_of_check_sh_exists() -> None:
    text = (ROOT / "packaging/check.sh").read_text()
    slow = re.findall(r"^tests/unit/\S+\.py$", text, re.MULTILINE)
    assert slow
    assert [name for name in slow if not (ROOT / name).is_file()] == []


def test_each_path_exists() -> None:
    paths = set(_PATH.findall(TEXT))
    assert len(paths) > 40
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_drawing_has_each_floor_and_wing() -> None:
    drawing = {
        words[0]: {word.strip(",") for word in words[1:]}
        for line in TEXT.splitlines()
        if line.startswith("    ") and (words := line.split()) and words[0].endswith(("/", ".py"))
    }
    floors = {path.name for path in (ROOT / "crashd").iterdir() if (path / "__init__.py").exists()}
    assert {f"{floor}/" for floor in floors} <= set(drawing)
    for floor, wings in WINGS.items():
        assert set(wings) <= drawing[f"{floor.removeprefix('crashd.')}/"], floor
