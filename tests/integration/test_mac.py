"""The SELinux module and the AppArmor profile, by the tools that load them (without loading).

Where the tools are not installed, they are taken out of Debian's packages.
"""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SELINUX = ROOT / "packaging/selinux"
PROFILE = ROOT / "packaging/apparmor/crashd-core"
TOOLS = {
    "checkmodule": "checkpolicy",
    "semodule_package": "semodule-utils",
    "apparmor_parser": "apparmor",
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the tools are."""
    unpacked = tmp_path_factory.mktemp("tools")
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        fetch = ["apt-get", "-q", "download", *missing]
        done = subprocess.run(fetch, cwd=unpacked, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs {', '.join(missing)}: {done.stderr[-200:]}")
        for package in unpacked.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    return unpacked


def run(tools: Path, *command: object) -> None:
    """Run a program that has to succeed."""
    path = f"{tools}/usr/bin:{tools}/sbin:{tools}/usr/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def test_selinux_modules_compile(tools: Path, tmp_path: Path) -> None:
    run(tools, "sh", SELINUX / "load.sh", "--build", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"crashd.pp", "crashd_permissive.pp"}
    built = (tmp_path / "crashd.pp").read_bytes()
    assert b"crashd_core_t" in built
    assert b"/usr/libexec/crashd-core" in built


def test_apparmor_profile_is_parsed(tools: Path) -> None:
    base = tools / "etc/apparmor.d"
    options = ["--base", base] if base.is_dir() else []
    run(tools, "apparmor_parser", "-Q", "--skip-kernel-load", "--skip-cache", *options, PROFILE)


def test_apparmor_profile_has_every_path_of_the_handlers() -> None:
    rules = re.findall(r"^  (/\S+) ([a-z]+),$", PROFILE.read_text(), re.MULTILINE)
    sources = [ROOT / "crashd/native/crashd-core.c", ROOT / "crashd/corehandler.py"]
    found = {word for file in sources for word in re.findall(r'"(/[a-z][^"]*)"', file.read_text())}
    found |= {"/usr/libexec/crashd-core.py", "/usr/bin/python3", "/var/lib/crashd/spool/x.core"}
    assert {"/dev/kmsg", "/run/crashd/handoff.sock", "/etc/subuid"} <= found
    for path in found:
        ways = [way for rule, way in rules if fnmatch(path, rule) or path == rule.rstrip("/")]
        assert ways, path
        if path.startswith(("/dev/", "/run/")):
            assert any("w" in way for way in ways), path
    assert {"m", "r"} <= set("".join(way for rule, way in rules if rule.endswith("crashd-core")))


def test_selinux_module_has_what_the_handlers_write() -> None:
    rules = (SELINUX / "crashd.te").read_text()
    assert re.search(
        r"^allow crashd_core_t kmsg_device_t:chr_file .*\bwrite\b", rules, re.MULTILINE
    )
    assert re.search(
        r"^allow crashd_core_t crashd_runtime_t:sock_file .*write", rules, re.MULTILINE
    )


def test_labels_and_interfaces_name_types_of_the_module() -> None:
    types = set(re.findall(r"^type (\w+)", (SELINUX / "crashd.te").read_text(), re.MULTILINE))
    used = set(re.findall(r"\bcrashd_\w+_t\b", (SELINUX / "crashd.fc").read_text()))
    used |= set(re.findall(r"\bcrashd_\w+_t\b", (SELINUX / "crashd.if").read_text()))
    assert used
    assert used <= types
