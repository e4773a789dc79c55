"""What the builders of packages ask the machine for."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _missing(loads: str) -> set[str]:
    """Return what a build wants installed on a machine whose loader finds what `loads` says."""
    script = f"""set -eu
program=test here=$1
. "$here/packaging/lib.sh"
. "$here/packaging/stage.sh"
loads() {{ {loads}; }}
have() {{ true; }}
missing=
find_missing_of_staging
printf '%s' "$missing"
"""
    done = subprocess.run(
        ["sh", "-c", script, "sh", ROOT], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def _depends() -> set[str]:
    """Return the packages that the Debian package needs."""
    control = (ROOT / "packaging/deb/control").read_text(encoding="utf-8")
    (line,) = re.findall(r"^Depends: (.*)$", control, re.MULTILINE)
    return {re.split(r"[ (]", name)[0] for name in line.split(", ")}


def test_build_wants_the_libraries_that_it_links_against() -> None:
    """It loads what it has made: without them it would fail after minutes."""
    wanted = _missing("false")
    assert {"libsnappy1v5", "liblzo2-2"} <= wanted <= _depends()
    assert _missing("true") == set()


def test_build_wants_only_the_library_that_is_missing() -> None:
    assert _missing('[ "$1" != libsnappy.so.1 ]') == {"libsnappy1v5"}


def test_rpm_requires_the_same_libraries() -> None:
    stage = (ROOT / "packaging/stage.sh").read_text(encoding="utf-8")
    spec = (ROOT / "packaging/rpm/crashd.spec").read_text(encoding="utf-8")
    listed = re.search(r'^SYSTEM_LIBRARIES="([^"]*)"$', stage, re.MULTILINE)
    assert listed is not None
    names = {entry.partition("=")[0] for entry in listed[1].split()}
    assert len(names) == 7
    assert names == set(re.findall(r"^Requires: (lib\S+\.so\.\d+)\(\)", spec, re.MULTILINE))
