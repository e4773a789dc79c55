"""What crashd-guide(7) shows: commands, and files."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "packaging/man/crashd-guide.7.rst"
OF_THE_SYSTEM = ("apt-get", "systemctl", "journalctl")
"""What these do needs crashd to be installed; all others run on a root of their own."""
_OF_A_FLEET = re.compile(r"createdb|crashd-fleet|export CRASHD_FLEET|crashctl --fleet")
"""What these do needs PostgreSQL: tests/integration/test_fleet*.py run them."""
_PROMPT = "# "


def blocks() -> list[str]:
    """Give the guide's literal blocks, in their order, without their indentation."""
    found = re.findall(r"::\n\n((?:    .*\n|\n)+)", GUIDE.read_text())
    return ["\n".join(line[4:] for line in block.rstrip().split("\n")) for block in found]


def commands(*, of_the_system: bool) -> list[str]:
    """Give the commands that need crashd to be installed, or the others."""
    lines = [line for block in blocks() for line in block.split("\n") if line.startswith(_PROMPT)]
    words = [line.removeprefix(_PROMPT) for line in lines]
    words = [line for line in words if not _OF_A_FLEET.match(line)]
    return [line for line in words if (line.split()[0] in OF_THE_SYSTEM) == of_the_system]


def files() -> list[str]:
    """Give the contents of files: every block that has no commands."""
    return [block for block in blocks() if not block.startswith(_PROMPT)]
