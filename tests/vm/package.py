"""The package under test, and one by a lower version to upgrade from."""

import os
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
QUICK = {"CRASHD_QUICK": "1"}


def build(directory: Path, **kept: Path) -> Path:
    """Build the Debian package, or take the one that $CRASHD_TEST_DEB names. What it includes is
    taken from the directories `bundles` and `wheels`, or kept there for other builds: see stage.sh.
    """
    given = os.environ.get("CRASHD_TEST_DEB")
    if given:
        return Path(given)
    where = {f"CRASHD_{name.upper()}": str(path) for name, path in kept.items()}
    done = subprocess.run(
        ["sh", REPOSITORY / "packaging/deb.sh", directory],
        check=True,
        env={**os.environ, **QUICK, **where},
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
    )
    return Path(done.stdout.split()[-1])


def make_previous(package: Path, target: Path, work: Path) -> None:
    """Make of a package the same by a version that sorts before it."""
    tree = work / "previous"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = [
        f"{line}~previous" if line.startswith("Version:") else line
        for line in control.read_text().splitlines()
    ]
    control.write_text("\n".join(lines) + "\n")
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
