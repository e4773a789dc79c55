"""The tree is clean by ruff and mypy, and the lock files are what pyproject.toml asks for."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON_FILES = ("crashd", "tests", "packaging")
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "packaging").rglob("*.py"))
LOCKS = sorted((ROOT / "packaging").glob("requirements*.lock"))


@pytest.mark.allow_subprocess
@pytest.mark.timeout(600)  # mypy without its cache, on a small machine
@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", *PYTHON_FILES),
        ("ruff", "format", "--check", *PYTHON_FILES),
        ("mypy",),
        ("mypy", *SCRIPTS),
    ],
    ids=" ".join,
)
def test_linter_finds_nothing(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def read_pins(lock: Path) -> dict[str, str]:
    """Map each package of a lock file to its requirement line."""
    lines = [
        line for line in lock.read_text().splitlines() if re.match(r"[a-z0-9]", line, re.IGNORECASE)
    ]
    return {line.partition("==")[0]: line for line in lines}


def package_of(requirement: str) -> str:
    """Take the name out of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0].lower().replace("_", "-")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_pins_and_hashes_everything_and_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "index-url" not in text
    entries = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+ ", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_locks_hold_every_dependency_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = {package_of(r) for r in project["project"]["dependencies"]}
    build = {package_of(r) for r in project["build-system"]["requires"]}
    dev = {package_of(r) for r in project["dependency-groups"]["dev"]}
    pins = {lock.stem: read_pins(lock) for lock in LOCKS}
    assert runtime <= pins["requirements"].keys()
    assert build <= pins["requirements-build"].keys()
    assert runtime | dev <= pins["requirements-dev"].keys()


def test_dev_lock_has_the_versions_that_are_run() -> None:
    pins = {lock.stem: read_pins(lock) for lock in LOCKS}
    for package, line in pins["requirements"].items():
        assert pins["requirements-dev"][package] == line
