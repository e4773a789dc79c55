"""Habits that cost a reader a second look do not come back; CONTRIBUTING.md has the rule."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AREAS = (
    "cli",
    "configuration",
    "domain/crash",
    "domain/host",
    "domain/keep",
    "domain/kernellog",
    "domain/web",
    "edge/host",
    "edge/sandbox",
    "edge/web",
)
"""Packages of crashd that were read once, word by word."""
HABITS = {
    "a docstring that begins with Tell: write Return": r'"""Tells?\b',
    "anew: write again": r"\banew\b",
    "for it is: write because it is": r"\bfor (?:it|there|they|that) (?:is|are|has|have)\b",
    "whoever, for a program: name it": r"\b[Ww]hoever\b(?! (?:calls|runs) crashctl)",
    "he or his, for a user: write they or their": r"\b(?:he|his)\b(?! said)",
}


def find_habits(text: str) -> list[str]:
    """Return the line number and the habit for each place in a text."""
    return [
        f"{text.count(chr(10), 0, found.start()) + 1}: {habit}"
        for habit, pattern in HABITS.items()
        for found in re.finditer(pattern, text)
    ]


@pytest.mark.parametrize("area", AREAS)
def test_area_has_no_habit(area: str) -> None:
    files = sorted((ROOT / "crashd" / area).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): find_habits(path.read_text()) for path in files}
    assert {name: habits for name, habits in found.items() if habits} == {}


@pytest.mark.parametrize(
    "page", sorted((ROOT / "packaging/man").glob("*.rst")), ids=lambda p: p.stem
)
def test_man_page_has_no_habit(page: Path) -> None:
    assert find_habits(page.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        '    """Tell whether it runs."""',
        "# built anew",
        "# large, for it is a core",
        "# whoever reads the socket",
        "# a user and his files",
    ],
)
def test_each_habit_is_found(text: str) -> None:
    assert len(find_habits(text)) == 1
