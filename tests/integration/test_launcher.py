"""packaging/launcher, with the tree here in the place of the package's bundle."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with crashctl and crashd as a package installs them."""
    bundle = tmp_path / "lib/python{}.{}".format(*sys.version_info)
    bundle.mkdir(parents=True)
    (bundle / "crashd").symlink_to(ROOT / "crashd")
    text = (ROOT / "packaging/launcher").read_text(encoding="utf-8")
    assert "/usr/lib/crashd" in text
    for name in ("crashctl", "crashd"):
        (tmp_path / name).write_text(text.replace("/usr/lib/crashd", str(tmp_path / "lib")))
    return tmp_path


def run(program: Path, *arguments: str, options: str = "-IS") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, options, "-X", "importtime", str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_shebang_leaves_out_what_the_distribution_starts_in_every_program() -> None:
    assert (ROOT / "packaging/launcher").read_text().startswith("#!/usr/bin/python3 -IS\n")


@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["-F", "exe", "list"]])
def test_crashctl_starts_without_site(programs: Path, arguments: list[str]) -> None:
    done = run(programs / "crashctl", "--root", str(programs), *arguments)
    assert "crashd.cli.main" in imported(done)
    assert "site" not in imported(done)


def test_crashctl_finds_psycopg_of_the_distribution(programs: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    dsn = f"host={programs} dbname=crashd"
    done = run(programs / "crashctl", f"--fleet={dsn}", "want", "nginx")
    assert {"site", "psycopg"} <= imported(done)
    assert done.returncode == 4, done.stderr[-500:]


def test_analysis_without_systemd_finds_the_modules_beside_the_daemons(programs: Path) -> None:
    (bundle,) = (programs / "lib").iterdir()
    program = "import sys; sys.path.insert(0, sys.argv[1]); from crashd.edge.sandbox import start;"
    program += "print(start._PACKAGE_DIR)"
    command = [sys.executable, "-P", "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(bundle), "and not where the link leads to"


@pytest.mark.parametrize("verb", ["list", "info", "top"])
def test_crashctl_asks_a_fleet_without_what_takes_long_to_load(programs: Path, verb: str) -> None:
    done = run(programs / "crashctl", f"--fleet=host={programs} dbname=crashd", verb)
    modules = imported(done)
    assert "crashd.edge.fleet.libpq" in modules, done.stderr[-500:]
    slow = {"site", "psycopg", "asyncio", "argparse", "sqlite3", "hashlib"} & modules
    assert not slow
    assert done.returncode == 4, done.stderr[-500:]


def test_other_programs_have_what_the_distribution_has(programs: Path) -> None:
    done = run(programs / "crashd", "--help")
    assert done.returncode == 0, done.stderr[-500:]
    assert "site" in imported(done)
