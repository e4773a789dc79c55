"""Run the whole table of programs, with gdb as the witness of each, and print how many have their
true cause, title and function:

    sudo python -m tests.programtable [PATTERN]

It takes over kernel.core_pattern as tests/system does, and restores it.
"""

import os
import re
import shutil
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from tests.conftest import PROC_SYS, own_settings
from tests.system.test_analysis import Crasher, Died, analyse_death, gdb_stack, last_part
from tests.system.test_programs import CASES, Programs, read_table

ENVIRON = {
    "ASAN_OPTIONS": "abort_on_error=1:disable_coredump=0",
    "UBSAN_OPTIONS": "abort_on_error=1",
    "GO111MODULE": "off",
}
PLACE = re.compile(r", (?P<place>\S+)\(\): ")


def is_seen_by_gdb(title: str, died: Died) -> bool | None:
    """Return whether gdb has the function of a title on its stack; None if the title has none."""
    found = PLACE.search(title)
    if found is None:
        return None
    return last_part(found["place"]) in {last_part(name) for name in gdb_stack(died)[1]}


def run(directory: Path, pattern: str) -> int:
    """Run what matches; return how many rows are wrong."""
    crasher, programs = Crasher(directory), Programs(directory)
    os.environ.update(ENVIRON, GOCACHE=str(directory / "go"))
    rows = [row for row in CASES if fnmatch(f"{row[0]}-{row[1]}", pattern)]
    wrong = causes = titles = places = seen = 0
    for name, word, title, explanation in rows:
        died = crasher.run(programs.get(name), word)
        analysis = analyse_death(died)
        cause = re.search(explanation, analysis.explanation or "") is not None
        gdb = is_seen_by_gdb(analysis.title or "", died)
        causes, titles = causes + cause, titles + (analysis.title == title)
        places, seen = places + (gdb is not None), seen + bool(gdb)
        if not cause or analysis.title != title or gdb is False:
            wrong += analysis.title != title or not cause
            print(f"{name} {word}: {analysis.title} | {analysis.explanation} | gdb: {gdb}")
        died.core.unlink()
    print(
        f"{len(rows)} programs: {causes} causes and {titles} titles are true; gdb has {seen} of "
        f"the {places} functions named; {len(read_table()) - len(CASES)} need another compiler"
    )
    return wrong


def main() -> int:
    """Run the table; return the exit status."""
    directory = Path(tempfile.mkdtemp(prefix="cdt"))
    directory.chmod(0o755)
    owner = own_settings(PROC_SYS)
    try:
        owner.write("kernel/core_pattern", f"{directory}/core.%p")
        return 1 if run(directory, (*sys.argv, "*")[1]) else 0
    finally:
        owner.restore()
        shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
