"""packaging/check.sh fails for each kind of fault, and says which check found it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOUND = {
    "crashd/__init__.py": '"""A package."""\n',
    "tests/__init__.py": "",
    "tests/unit/__init__.py": "",
    "tests/unit/test_sound.py": "def test_sound() -> None:\n    assert True\n",
    "packaging/script.py": 'print("a script")\n',
}
FAULTS = {
    "format": ("crashd/fault.py", "NUMBERS = {  'one':1 }\n"),
    "lint": ("crashd/fault.py", "import os\n"),
    "types": ("crashd/fault.py", 'NUMBER: int = "one"\n'),
    "unit": ("tests/unit/test_fault.py", "def test_fault() -> None:\n    assert not True\n"),
}
"""A file with one fault for each check, which the other checks accept."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small tree without faults; mypy's cache in it serves all tests."""
    tree = tmp_path_factory.mktemp("clone")
    for name, text in SOUND.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("pyproject.toml", "packaging/check.sh", "packaging/lib.sh"):
        shutil.copy(ROOT / name, tree / name)
    yield tree


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "CRASHD_CHECK_ENVIRONMENT": sys.prefix}
    return subprocess.run(
        ["sh", "packaging/check.sh", "-n", "0"],
        cwd=tree,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return what the script says of each check."""
    lines = [line.split(": ") for line in done.stderr.splitlines()]
    return {words[1]: words[2].split(" ")[0] for words in lines if words[1] in FAULTS}


def test_a_tree_without_faults_passes(tree: Path) -> None:
    done = check(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcomes(done) == dict.fromkeys(FAULTS, "ok")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_its_own_check(tree: Path, fault: str) -> None:
    name, text = FAULTS[fault]
    (tree / name).write_text(text)
    try:
        done = check(tree)
    finally:
        (tree / name).unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(done) == dict.fromkeys(FAULTS, "ok") | {fault: "FAILED"}
    assert name in done.stdout


def test_a_script_with_a_wrong_type_fails(tree: Path) -> None:
    """The scripts are outside of mypy's own list of files."""
    script = tree / "packaging/fault.py"
    script.write_text('NUMBER: int = "one"\n')
    try:
        done = check(tree)
    finally:
        script.unlink()
    assert outcomes(done)["types"] == "FAILED"
    assert done.returncode == 1
