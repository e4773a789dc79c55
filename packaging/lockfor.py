"""Print the lock of one Python version: pip judges markers by the interpreter that runs it, also
where it installs for another one.

    python packaging/lockfor.py 3.13 LOCK [WITHOUT...]
"""

import re
import sys
from pathlib import Path

from packaging.requirements import Requirement


def main(version: str, lock: str, *without: str) -> int:
    """Print the requirements, with their hashes and without markers; return the exit status."""
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    text = re.sub(r"^ *#.*\n", "", Path(lock).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        first, *hashes = entry.replace("\\\n", "\n").split("\n")
        requirement = Requirement(first.strip())
        if requirement.name in without:
            continue
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            print(" \\\n".join([str(requirement), *(f"    {row.strip()}" for row in hashes)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
